// SPDX-License-Identifier: GPL-2.0
/* --- the processes that a filter names --------------------------------- */

#if MAYBE(FOLLOW_PIDS)
static __always_inline u32 task_tgid(u64 task)
{
	return READ_FIELD(task, u32, OFF_task_struct_tgid);
}

/* wake_up_new_task(task), by its parent. That recording has begun does not matter. */
int task_new(struct pt_regs *ctx)
{
	u32 parent = bpf_get_current_pid_tgid() >> 32;
	u32 child = task_tgid(ARG(task_new, p));
	u8 one = 1;

	if (child == parent || !tgids.lookup(&parent))
		return 0;
	if (tgids.update(&child, &one))
		count_lost(CDM_PROBE_WATCH, CDM_LOST_MAP);
	return 0;
}

/* release_task(task): the leader goes last, and then its number can be given anew. */
int task_gone(struct pt_regs *ctx)
{
	u64 task = ARG(task_gone, p);
	u32 tgid = task_tgid(task);

	if (READ_FIELD(task, u32, OFF_task_struct_pid) == tgid)
		tgids.delete(&tgid);
	return 0;
}
#endif
