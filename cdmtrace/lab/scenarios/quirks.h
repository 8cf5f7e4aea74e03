/* SPDX-License-Identifier: GPL-2.0-only */
/* What a scenario is told of the kernel: the quirks that are on (a part of scenario.h) */
#ifndef SCENARIO_QUIRKS_H
#define SCENARIO_QUIRKS_H

/* ---- Quirks ---------------------------------------------------------- */

enum quirk {
	Q_BIND_ONLY,
	Q_FAULT_TAG,
	Q_INTERLEAVE_UNTAGGED,
	Q_THP_UNTAGGED,
	Q_ONE_WAY,
	Q_WHOLE_VMA,
	Q_MIGRATION_UNGATED,
	Q_TASK_POLICY,
	Q_KSM_LEFT_ON,
	Q_KSM_MERGE,
	Q_KHUGEPAGED,
	Q_SWAP_READAHEAD,
	Q_SHARED_POLICY,
	Q_NO_REBIND,
	Q_FIRST_NODE,
	Q_DRIVER_UNTAGGED,
	Q_NUMA_RESIDUAL,
	Q_NUMA_SCANNED,
	Q_MERGEABLE_HONOURED,
	Q_DEFAULT_OOPS,
	Q_NULL_VMA,
	Q_UNLOCKED_CLEAR,
	Q_SLOW_RMW,
	Q_WORKQUEUE_TAG,
	Q_MPROTECT_DROP,
	Q_FORK_DROP,
	Q_SPLIT_DROP,
	NR_QUIRKS
};

/* @needs: quirks that the kernel switches on together with this one */
static const struct {
	const char *name;
	unsigned int needs;
} quirk_table[NR_QUIRKS] = {
	[Q_BIND_ONLY]		= { "bind-only", 0 },
	[Q_FAULT_TAG]		= { "fault-tag", 1U << Q_BIND_ONLY },
	[Q_INTERLEAVE_UNTAGGED]	= { "interleave-untagged", 1U << Q_FAULT_TAG },
	[Q_THP_UNTAGGED]	= { "thp-untagged", 1U << Q_FAULT_TAG },
	[Q_ONE_WAY]		= { "one-way", 0 },
	[Q_WHOLE_VMA]		= { "whole-vma", 0 },
	[Q_MIGRATION_UNGATED]	= { "migration-ungated", 0 },
	[Q_TASK_POLICY]		= { "task-policy", 0 },
	[Q_KSM_LEFT_ON]		= { "ksm-left-on", 0 },
	[Q_KSM_MERGE]		= { "ksm-merge", 0 },
	[Q_KHUGEPAGED]		= { "khugepaged", 0 },
	[Q_SWAP_READAHEAD]	= { "swap-readahead", 0 },
	[Q_SHARED_POLICY]	= { "shared-policy", 0 },
	[Q_NO_REBIND]		= { "no-rebind", 0 },
	[Q_FIRST_NODE]		= { "first-node", 0 },
	[Q_DRIVER_UNTAGGED]	= { "driver-untagged", 0 },
	[Q_NUMA_RESIDUAL]	= { "numa-residual", 0 },
	[Q_NUMA_SCANNED]	= { "numa-scanned", 0 },
	[Q_MERGEABLE_HONOURED]	= { "mergeable-honoured", 0 },
	[Q_DEFAULT_OOPS]	= { "default-oops", 0 },
	[Q_NULL_VMA]		= { "null-vma", 1U << Q_FAULT_TAG },
	[Q_UNLOCKED_CLEAR]	= { "unlocked-clear", 1U << Q_ONE_WAY },
	[Q_SLOW_RMW]		= { "slow-rmw", 0 },
	[Q_WORKQUEUE_TAG]	= { "workqueue-tag", 0 },
	[Q_MPROTECT_DROP]	= { "mprotect-drop", 0 },
	[Q_FORK_DROP]		= { "fork-drop", 0 },
	[Q_SPLIT_DROP]		= { "split-drop", 0 },
};

static unsigned int quirks;

static UNUSED bool quirk(enum quirk q)
{
	return quirks & (1U << q);
}

/* Returns false at the first name that is not a quirk, left in @bad. */
static bool parse_quirks(const char *list, unsigned int *set, char *bad,
			 size_t size)
{
	unsigned int q, before;

	*set = 0;
	if (!strcmp(list, "none"))
		return true;
	while (*list) {
		size_t len = strcspn(list, ",");

		for (q = 0; q < NR_QUIRKS; q++)
			if (strlen(quirk_table[q].name) == len &&
			    !strncmp(list, quirk_table[q].name, len))
				break;
		if (q == NR_QUIRKS) {
			snprintf(bad, size, "%.*s", (int)len, list);
			return false;
		}
		*set |= 1U << q;
		list += len;
		if (*list == ',' && !*++list) {
			snprintf(bad, size, "%s", "");
			return false;
		}
	}
	do {
		before = *set;
		for (q = 0; q < NR_QUIRKS; q++)
			if (*set & (1U << q))
				*set |= quirk_table[q].needs;
	} while (*set != before);
	return true;
}

static void quirks_text(char *buf, size_t size, unsigned int set)
{
	size_t at = 0;
	unsigned int q;

	snprintf(buf, size, "none");
	for (q = 0; q < NR_QUIRKS; q++)
		if ((set & (1U << q)) && at < size)
			at += snprintf(buf + at, size - at, "%s%s",
				       at ? "," : "", quirk_table[q].name);
}

#endif
