/*
 * What SQL cannot do for the stand-in. Here: the settings citus.*, and small functions for SQL. background.c: the
 * background processes. redirect.c: hooks that send queries of a distributed table to its shards, and roles to the
 * workers. Everything else is in sql/.
 */
#include "postgres.h"

#include <sys/statvfs.h>

#include "access/twophase.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

#include "standin.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

/* ---- settings: names, contexts, ranges and defaults of Citus 13.2; settings.h is a table of them ---- */

typedef struct
{
	const char *name;
	char		type;			/* b i r s, or e with the words that it takes */
	GucContext	context;
	int			flags;
	const char *boot;
	double		min,
				max;
	const char *words;
} Setting;

static const Setting settings[] = {
#include "settings.h"
};

static void
define_enum(const Setting *s)
{
	char	   *words = strdup(s->words);
	struct config_enum_entry *entries = calloc(strlen(words) + 2, sizeof(*entries));
	int		   *value = calloc(1, sizeof(int));
	int			n = 0;

	for (char *word = strtok(words, ","); word; word = strtok(NULL, ","), n++)
	{
		entries[n].name = word;
		entries[n].val = n;
		if (strcmp(word, s->boot) == 0)
			*value = n;
	}
	DefineCustomEnumVariable(s->name, "See Citus.", NULL, value, *value, entries,
							 s->context, s->flags, NULL, NULL, NULL);
}

static void
define_settings(void)
{
	for (int i = 0; i < lengthof(settings); i++)
	{
		const Setting *s = &settings[i];
		void	   *value = calloc(1, sizeof(double));	/* lives as long as the process */

		if (s->type == 'b')
			DefineCustomBoolVariable(s->name, "See Citus.", NULL, value, strcmp(s->boot, "on") == 0,
									 s->context, s->flags, NULL, NULL, NULL);
		else if (s->type == 'i')
			DefineCustomIntVariable(s->name, "See Citus.", NULL, value, atoi(s->boot), (int) s->min,
									(int) s->max, s->context, s->flags, NULL, NULL, NULL);
		else if (s->type == 'r')
			DefineCustomRealVariable(s->name, "See Citus.", NULL, value, atof(s->boot), s->min,
									 s->max, s->context, s->flags, NULL, NULL, NULL);
		else if (s->type == 's')
			DefineCustomStringVariable(s->name, "See Citus.", NULL, value, s->boot,
									   s->context, s->flags, NULL, NULL, NULL);
		else
			define_enum(s);
	}
	MarkGUCPrefixReserved("citus");
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errmsg("Citus can only be loaded via shared_preload_libraries"),
				 errhint("Add citus to shared_preload_libraries configuration variable in postgresql.conf.")));
	define_settings();
	if (max_prepared_xacts == 0)	/* Citus does the same: its transactions need them */
		SetConfigOption("max_prepared_transactions", psprintf("%d", 2 * MaxConnections), PGC_POSTMASTER, PGC_S_OVERRIDE);
	set_hooks();
	register_launcher();
}

/* ---- functions for SQL ---- */

/* LOCK TABLE refuses foreign tables. Writers wait for this lock, readers do not. */
PG_FUNCTION_INFO_V1(standin_hold_writes);
Datum
standin_hold_writes(PG_FUNCTION_ARGS)
{
	LockRelationOid(PG_GETARG_OID(0), ExclusiveLock);
	CacheInvalidateRelcacheByRelid(PG_GETARG_OID(0));
	PG_RETURN_VOID();
}

typedef struct
{
	FmgrInfo	hash;
	uint64		shards;
} Sharding;

/*
 * Support function of the operator classes of distributed tables: the shard of a value. Functions are named
 * shard_of_<shards>; what PostgreSQL adds when it combines the hashes of a partition key is taken off beforehand,
 * so that the remainder of the partition is the number of the shard.
 */
PG_FUNCTION_INFO_V1(standin_shard_of);
Datum
standin_shard_of(PG_FUNCTION_ARGS)
{
	Sharding   *s = fcinfo->flinfo->fn_extra;
	uint64		token;

	if (s == NULL)
	{
		Oid		   *types;
		int			n;

		s = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Sharding));
		(void) get_func_signature(fcinfo->flinfo->fn_oid, &types, &n);
		s->shards = atoi(strrchr(get_func_name(fcinfo->flinfo->fn_oid), '_') + 1);
		fmgr_info_copy(&s->hash, &lookup_type_cache(types[0], TYPECACHE_HASH_PROC_FINFO)->hash_proc_finfo,
					   fcinfo->flinfo->fn_mcxt);
		fcinfo->flinfo->fn_extra = s;
	}
	token = (uint32) FunctionCall1Coll(&s->hash, PG_GET_COLLATION(), PG_GETARG_DATUM(0)) + UINT64CONST(0x80000000);
	token = (token & 0xFFFFFFFF) / (UINT64CONST(0x100000000) / s->shards);
	PG_RETURN_INT64(Min(token, s->shards - 1) - UINT64CONST(0x49a0f4dd15e5a8e3));
}

PG_FUNCTION_INFO_V1(standin_worker_hash);
Datum
standin_worker_hash(PG_FUNCTION_ARGS)
{
	TypeCacheEntry *type = lookup_type_cache(get_fn_expr_argtype(fcinfo->flinfo, 0), TYPECACHE_HASH_PROC_FINFO);

	PG_RETURN_DATUM(FunctionCall1Coll(&type->hash_proc_finfo, PG_GET_COLLATION(), PG_GETARG_DATUM(0)));
}

/* Free or all bytes of the file system with the data directory. */
PG_FUNCTION_INFO_V1(standin_disk);
Datum
standin_disk(PG_FUNCTION_ARGS)
{
	struct statvfs fs;

	if (statvfs(DataDir, &fs) != 0)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not stat file system of \"%s\": %m", DataDir)));
	PG_RETURN_INT64((int64) (PG_GETARG_BOOL(0) ? fs.f_bavail : fs.f_blocks) * fs.f_frsize);
}
