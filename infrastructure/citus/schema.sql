-- The dialogs of a social network: every message once, in the shard of the one who reads it.
--
-- Run by the operator when a cluster is born, once and in one transaction, which sets citus.shard_count
-- (spec.schema.shardCount, 32 by default). By hand: psql -1 -f schema.sql.
--
-- A writer gives four columns: from_user, to_user, message, created_at (the last may be left to its default).
--
-- The key. A shard can only be moved without holding up writes if its table has a primary key, and in Citus that
-- begins with the distribution column. No set of the four columns will do for the rest of it: two people may well
-- write the same words twice at one instant, and PRIMARY KEY (to_user, from_user, created_at) would refuse the second
-- message. So a message has an id of its own. A writer that may have to say things twice (a worker restarts in
-- 0.2 s and fails what arrives meanwhile) chooses the id itself and adds ON CONFLICT (to_user, message_id) DO NOTHING:
-- then a message is stored once, however often it is sent. A writer that gives none gets a random one.

CREATE TABLE public.dialogs (
    from_user  bigint      NOT NULL,
    to_user    bigint      NOT NULL,
    message    text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    message_id uuid        NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (to_user, message_id)
);

-- A dialog of two people is read from two shards, newest first: one index for each direction.
CREATE INDEX dialogs_from_user ON public.dialogs (from_user, to_user, created_at DESC);
CREATE INDEX dialogs_to_user ON public.dialogs (to_user, from_user, created_at DESC);

SELECT pg_catalog.create_distributed_table('public.dialogs', 'to_user');
