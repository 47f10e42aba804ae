/*
 * The hooks of the stand-in: queries of a distributed table go to the partitioned table behind it, and statements
 * about roles to the workers.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/planner.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "standin.h"

static planner_hook_type previous_planner;
static ProcessUtility_hook_type previous_utility;

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
set_hooks(void)
{
	previous_planner = planner_hook;
	planner_hook = standin_planner;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = standin_utility;
}
