/*
 * What SQL cannot do for the stand-in: the settings citus.*, background processes, and two hooks (queries of a
 * distributed table must reach its shards; roles made on the coordinator must reach the workers).
 * Everything else is in citus--13.2-1.sql.
 */
#include "postgres.h"

#include <sys/statvfs.h>

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/planner.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);
PGDLLEXPORT void standin_launcher(Datum arg);
PGDLLEXPORT void standin_worker(Datum arg);

static planner_hook_type previous_planner;
static ProcessUtility_hook_type previous_utility;

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

/* ---- background processes: a launcher, and workers that each run one SQL function again and again ---- */

typedef struct
{
	Oid			database;
	char		sql[BGW_EXTRALEN - sizeof(Oid)];
} Job;

static bool
start_worker(const char *name, Oid database, const char *sql)
{
	BackgroundWorker worker = {0};
	Job			job = {0};

	job.database = database;
	strlcpy(job.sql, sql, sizeof(job.sql));
	memcpy(worker.bgw_extra, &job, sizeof(job));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "citus", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "standin_worker", BGW_MAXLEN);
	strlcpy(worker.bgw_name, name, BGW_MAXLEN);
	strlcpy(worker.bgw_type, name, BGW_MAXLEN); /* becomes pg_stat_activity.backend_type */
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

static void
pause_for(long milliseconds)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, milliseconds, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

static void
become_background_process(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
}

/* Starts a worker in every database. One without the extension ends it at once: cheaper than keeping count. */
static void
start_everywhere(const char *name, const char *sql)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (database->datallowconn && !database->datistemplate)
			start_worker(name, database->oid, sql);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
}

void
standin_launcher(Datum arg)
{
	static const char *const work[][3] = {
		{"citus.background_task_queue_interval", "citus queue", "SELECT standin.work_queue()"},
		{"citus.defer_shard_delete_interval", "citus cleanup", "SELECT standin.look_after()"},
		{"citus.recover_2pc_interval", "citus recovery", "SELECT standin.recover()"},
	};
	TimestampTz last[lengthof(work)] = {0};

	become_background_process();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	for (;;)
	{
		for (int i = 0; i < lengthof(work); i++)
		{
			int			interval = atoi(GetConfigOption(work[i][0], false, false));

			if (interval < 0 || !TimestampDifferenceExceeds(last[i], GetCurrentTimestamp(), interval))
				continue;
			start_everywhere(work[i][1], work[i][2]);
			last[i] = GetCurrentTimestamp();
		}
		pause_for(100);
	}
}

/* Runs the worker's SQL in a transaction. It answers in how many milliseconds to run it again; -1: never. */
static int
run(const char *sql)
{
	int			again = -1;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (OidIsValid(get_extension_oid("citus", true)))
	{
		bool		isnull;

		pgstat_report_activity(STATE_RUNNING, sql);
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (SPI_execute(sql, false, 0) == SPI_OK_SELECT && SPI_processed == 1)
			again = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		SPI_finish();
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	return again;
}

void
standin_worker(Datum arg)
{
	Job			job;
	int			again;

	memcpy(&job, MyBgworkerEntry->bgw_extra, sizeof(job));
	become_background_process();
	BackgroundWorkerInitializeConnectionByOid(job.database, InvalidOid, 0);
	while ((again = run(job.sql)) >= 0)
		pause_for(again + 1);
}

/* ---- hooks ---- */

/* The partitioned table behind a distributed one: standin.table_<oid>, on the coordinator only. */
static Oid
table_behind(Oid relid)
{
	Oid			schema = get_namespace_oid("standin", true);

	return OidIsValid(schema) ? get_relname_relid(psprintf("table_%u", relid), schema) : InvalidOid;
}

/*
 * Sends queries of a distributed table to the partitioned table behind it. The original stays in the range table,
 * unused, so that its permissions are checked.
 *
 * A foreign partition has no index that could be named as the arbiter of a conflict. DO NOTHING without a target goes
 * through, and means the same as long as the primary key is the only unique index.
 */
static bool
redirect(Node *node, void *context)
{
	Query	   *query = (Query *) node;
	int			n;

	if (node == NULL)
		return false;
	if (!IsA(node, Query))
		return expression_tree_walker(node, redirect, context);
	n = list_length(query->rtable);
	for (int i = 1; i <= n; i++)
	{
		RangeTblEntry *rte = rt_fetch(i, query->rtable);
		RangeTblEntry *original;
		Oid			behind;

		if (rte->rtekind != RTE_RELATION || rte->relkind != RELKIND_RELATION ||
			!OidIsValid(behind = table_behind(rte->relid)))
			continue;
		original = copyObject(rte);
		original->inh = false;
		query->rtable = lappend(query->rtable, original);
		LockRelationOid(behind, rte->rellockmode);
		rte->relid = behind;
		rte->relkind = RELKIND_PARTITIONED_TABLE;
		rte->inh = true;
		rte->requiredPerms = 0;
		if (i == query->resultRelation && query->onConflict && query->onConflict->action == ONCONFLICT_NOTHING)
		{
			query->onConflict->arbiterElems = NIL;
			query->onConflict->arbiterWhere = NULL;
			query->onConflict->constraint = InvalidOid;
		}
	}
	return query_tree_walker(query, redirect, context, 0);
}

static PlannedStmt *
standin_planner(Query *query, const char *text, int options, ParamListInfo params)
{
	(void) redirect((Node *) query, NULL);
	return previous_planner ? previous_planner(query, text, options, params)
		: standard_planner(query, text, options, params);
}

/* The name of the table behind the one that a statement names; NULL when there is none. */
static RangeVar *
range_behind(RangeVar *range)
{
	Oid			relid = range ? RangeVarGetRelid(range, NoLock, true) : InvalidOid;

	return OidIsValid(relid) && OidIsValid(table_behind(relid)) ?
		makeRangeVar("standin", psprintf("table_%u", relid), -1) : NULL;
}

/*
 * COPY and TRUNCATE do not pass the planner. A partitioned table can be copied from by a query only; copied to it goes
 * by way of a temporary table, because PostgreSQL 15 would send a COPY row by row. Returns that this is so.
 */
static Oid
redirect_utility(Node *node)
{
	Oid			staged = InvalidOid;

	if (IsA(node, CopyStmt))
	{
		CopyStmt   *copy = (CopyStmt *) node;
		RangeVar   *behind = range_behind(copy->relation);

		if (behind && copy->is_from)
		{
			staged = RangeVarGetRelid(copy->relation, NoLock, false);
			copy->relation = makeRangeVar("pg_temp", "standin_copy", -1);
		}
		else if (behind)
		{
			StringInfoData columns;
			ListCell   *cell;

			initStringInfo(&columns);
			foreach(cell, copy->attlist)
				appendStringInfo(&columns, "%s%s", columns.len ? ", " : "", quote_identifier(strVal(lfirst(cell))));
			copy->query = linitial_node(RawStmt, raw_parser(psprintf("SELECT %s FROM standin.%s",
																	 columns.len ? columns.data : "*", behind->relname),
															RAW_PARSE_DEFAULT))->stmt;
			copy->relation = NULL;
			copy->attlist = NIL;
		}
	}
	else if (IsA(node, TruncateStmt))
	{
		TruncateStmt *truncate = (TruncateStmt *) node;
		List	   *more = NIL;
		ListCell   *cell;

		foreach(cell, truncate->relations)
		{
			RangeVar   *behind = range_behind(lfirst(cell));

			if (behind)
				more = lappend(more, behind);
		}
		truncate->relations = list_concat(truncate->relations, more);
	}
	return staged;
}

/* Calls a function of the extension; as its owner where a user need not be allowed what it does. */
static void
call(const char *function, const char *argument, bool as_owner)
{
	Oid			user;
	int			context;

	GetUserIdAndSecContext(&user, &context);
	if (as_owner)
		SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	SPI_connect();
	SPI_execute(psprintf("SELECT standin.%s(%s)", function, argument), false, 0);
	SPI_finish();
	SetUserIdAndSecContext(user, context);
}

static void
call_for_roles(const char *function, DropRoleStmt *statement)
{
	ListCell   *cell;

	if (OidIsValid(get_extension_oid("citus", true)))
		foreach(cell, statement->roles)
			if (lfirst_node(RoleSpec, cell)->rolename)
				call(function, quote_literal_cstr(lfirst_node(RoleSpec, cell)->rolename), true);
}

/* Event triggers do not see roles: after a statement about roles the workers get the same ones. */
static void
standin_utility(PlannedStmt *statement, const char *text, bool readOnlyTree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *node;
	bool		roles;
	Oid			staged = InvalidOid;

	if (IsA(statement->utilityStmt, CopyStmt) || IsA(statement->utilityStmt, TruncateStmt))
	{
		if (readOnlyTree)
			statement = copyObject(statement);
		staged = redirect_utility(statement->utilityStmt);
		if (OidIsValid(staged))
			call("before_copy", psprintf("%u", staged), false);
	}
	node = statement->utilityStmt;
	roles = IsA(node, CreateRoleStmt) || IsA(node, AlterRoleStmt) || IsA(node, GrantRoleStmt);

	if (IsA(node, DropRoleStmt) && has_createrole_privilege(GetUserId()))
		call_for_roles("before_drop_role", (DropRoleStmt *) node);
	if (previous_utility)
		previous_utility(statement, text, readOnlyTree, context, params, environment, dest, qc);
	else
		standard_ProcessUtility(statement, text, readOnlyTree, context, params, environment, dest, qc);
	if (OidIsValid(staged))
		call("after_copy", psprintf("%u", staged), false);
	if (IsA(node, DropRoleStmt))
		call_for_roles("after_drop_role", (DropRoleStmt *) node);
	else if (roles && OidIsValid(get_extension_oid("citus", true)))
	{
		CommandCounterIncrement();
		call("sync_roles", "", true);
	}
}

void
_PG_init(void)
{
	BackgroundWorker launcher = {0};

	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errmsg("Citus can only be loaded via shared_preload_libraries"),
				 errhint("Add citus to shared_preload_libraries configuration variable in postgresql.conf.")));
	define_settings();
	if (max_prepared_xacts == 0)	/* Citus does the same: its transactions need them */
		SetConfigOption("max_prepared_transactions", psprintf("%d", 2 * MaxConnections), PGC_POSTMASTER, PGC_S_OVERRIDE);
	previous_planner = planner_hook;
	planner_hook = standin_planner;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = standin_utility;

	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 1;
	strlcpy(launcher.bgw_library_name, "citus", BGW_MAXLEN);
	strlcpy(launcher.bgw_function_name, "standin_launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_name, "citus launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_type, "citus launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&launcher);
}

/* ---- functions for SQL ---- */

PG_FUNCTION_INFO_V1(standin_spawn);
Datum
standin_spawn(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(start_worker(text_to_cstring(PG_GETARG_TEXT_PP(0)), MyDatabaseId,
								text_to_cstring(PG_GETARG_TEXT_PP(1))));
}

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
