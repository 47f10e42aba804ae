/*
 * The background processes of the stand-in: a launcher, and workers that each run one SQL function again and again.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "standin.h"

PGDLLEXPORT void standin_launcher(Datum arg);
PGDLLEXPORT void standin_worker(Datum arg);

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

void
register_launcher(void)
{
	BackgroundWorker launcher = {0};

	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 1;
	strlcpy(launcher.bgw_library_name, "citus", BGW_MAXLEN);
	strlcpy(launcher.bgw_function_name, "standin_launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_name, "citus launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_type, "citus launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&launcher);
}

PG_FUNCTION_INFO_V1(standin_spawn);
Datum
standin_spawn(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(start_worker(text_to_cstring(PG_GETARG_TEXT_PP(0)), MyDatabaseId,
								text_to_cstring(PG_GETARG_TEXT_PP(1))));
}
