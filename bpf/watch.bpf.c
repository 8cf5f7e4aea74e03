// SPDX-License-Identifier: GPL-2.0
/* --- watchpoints: every write to vm_flags of a few VMAs ------------------- */

/*
 * In the program of `watch` alone, which puts before this file WATCHED_TGID, the
 * process, and WATCHES: how many there can be, as many as there are debug registers.
 * One is a perf event on each cpu, on the address of a VMA's vm_flags. No such address
 * is in the trace: user space learns them from the maps here.
 */

enum watch_state {
	WATCH_OFF,	/* no VMA, or not armed yet */
	WATCH_LIVE,
	WATCH_LEAVING,	/* nobody finds the VMA any more */
	WATCH_GONE,	/* it is freed: what is there now is something else */
};

/* What user space asks for. */
struct watch_asked {
	u64 addr;	/* the VMA that holds this address */
	u64 vma;	/* where the debug register looks; 0: it is to be told where */
};

#define WATCH_BEHIND 64ULL	/* bytes: what a copy may be past what it has written */

struct watch_asked_all {
	struct watch_asked w[WATCHES];
};

BPF_ARRAY(watch_asked, struct watch_asked_all, 1);

/* What the recorder's look at numa_maps has found; cleared by it before. */
struct watch_found {
	u64 vma;
	u64 mm;
	u64 start;
	u64 end;
	u64 flags;
};

struct watch_found_all {
	struct watch_found w[WATCHES];
};

BPF_ARRAY(watch_found, struct watch_found_all, 1);

/* What is watched, of which only the handlers here know. */
struct watchpoint {
	u64 vma;
	u64 mm;
	u64 last;	/* vm_flags when they were seen last */
	u64 hits;	/* of the debug registers, whatever came of them */
	u64 strange;	/* hits that cannot have been writes */
	u64 begun;	/* handlers that have begun, and ended: on several cpus */
	u64 ended;
	u64 state;
};

struct watchpoints {
	struct watchpoint w[WATCHES];
};

BPF_ARRAY(watchpoints, struct watchpoints, 1);

/* What a perf event hands its program (struct bpf_perf_event_data, since 4.15). */
struct watch_context {
	struct pt_regs regs;
	u64 sample_period;
	u64 addr;
};

/* From now on a watchpoint lies on this VMA; or no more, and why. */
static __always_inline void watch_tell(u64 vma, u32 number, u64 addr, int ret)
{
	struct cdm_event *e;

	/* Of no mm: at the end it may have ended, and nobody is to follow it. */
	e = event_new(CDM_EV_WATCH, CDM_PROBE_WATCHPOINT, 0, 0, 0);
	if (!e)
		return;
	event_vma(e, vma);
	e->addr = addr;
	e->arg = number;
	e->ret = ret;
	event_submit(e);
}

/*
 * show_numa_map(m, vma), as the recorder reads of the process that it watches: the
 * mmap lock is held for read. The first time it is told where the VMA is, the second
 * time, with the debug registers set, the watchpoint is armed.
 */
int watch_look(struct pt_regs *ctx)
{
	u64 vma = ARG(watch_look, v), start, end, private;
	u32 zero = 0;
	struct watch_asked_all *asked = watch_asked.lookup(&zero);
	struct watch_found_all *found = watch_found.lookup(&zero);
	struct watchpoints *points = watchpoints.lookup(&zero);
	int i;

	if (bpf_get_current_pid_tgid() >> 32 != RECORDER || !asked || !found || !points)
		return 0;
	private = READ_FIELD(ARG(watch_look, m), u64, OFF_seq_file_private);
	if (looked_at(private) != WATCHED_TGID)
		return 0;
	start = VMA_START(vma);
	end = VMA_END(vma);
	for (i = 0; i < (int)WATCHES; i++) {
		struct watchpoint *point = &points->w[i];
		u64 addr = asked->w[i].addr;

		if (!addr || addr < start || addr >= end)
			continue;
		found->w[i].vma = vma;
		found->w[i].mm = VMA_MM(vma);
		found->w[i].start = start;
		found->w[i].end = end;
		found->w[i].flags = VMA_FLAGS(vma);
		if (!is_enabled() || asked->w[i].vma != vma ||
		    (point->vma == vma && point->state == WATCH_LIVE))
			continue;
		/* From now on all that it does is told. */
		watch(VMA_MM(vma));
		point->vma = vma;
		point->mm = VMA_MM(vma);
		point->last = VMA_FLAGS(vma);
		point->state = WATCH_LIVE;
		watch_tell(vma, i, addr, 0);
	}
	return 0;
}

/*
 * An instruction that has written at @at, the flags of @vma, has an address of there
 * in a register: that of the VMA, or of its flags, or how far a copy has come. That of
 * what lies beside the VMA is none: the allocator leaves no room between objects.
 * struct pt_regs begins with the 15 registers that there are for all purposes.
 */
static __always_inline int watch_points_at(struct pt_regs *regs, u64 vma, u64 at)
{
	u64 *word = (u64 *)regs;
	int i, near = 0;

	for (i = 0; i < 15; i++)
		near |= word[i] - vma <= at - vma + WATCH_BEHIND;
	return near;
}

/*
 * A debug register saw a write: it has been done, and the register that holds the
 * instruction's address is past it. This interrupts whatever it is, as an NMI does.
 * What was there before is what was seen last: of two that write within the time
 * that this takes, the first shows what both have made.
 */
int watch_hit(struct watch_context *ctx)
{
	u64 at = ctx->addr - OFF_vm_area_struct_vm_flags, vma = 0, begun;
	struct watchpoint *point = 0;
	struct cdm_event *e;
	u32 zero = 0, number = 0;
	struct watch_asked_all *asked = watch_asked.lookup(&zero);
	struct watchpoints *points = watchpoints.lookup(&zero);
	u64 addr = 0;
	int i;

	if (!asked || !points)
		return 0;
	for (i = 0; i < (int)WATCHES; i++) {
		if (asked->w[i].vma != at)
			continue;
		point = &points->w[i];
		number = i;
		addr = asked->w[i].addr;
		vma = at;
	}
	if (!point)
		return 0;
	__sync_fetch_and_add(&point->hits, 1);
	if (!is_enabled() || point->vma != vma ||
	    (point->state != WATCH_LIVE && point->state != WATCH_LEAVING))
		return 0;
	if (VMA_MM(vma) != point->mm) {
		/* It is freed, and nobody has said so. */
		point->state = WATCH_GONE;
		return 0;
	}
	/*
	 * An emulated processor (QEMU 7.2) sometimes traps at writes to elsewhere. What
	 * has changed nothing has to show that it wrote here.
	 */
	if (VMA_FLAGS(vma) == point->last &&
	    !watch_points_at(&ctx->regs, vma, ctx->addr)) {
		__sync_fetch_and_add(&point->strange, 1);
		return 0;
	}
	__sync_fetch_and_add(&point->begun, 1);
	begun = point->begun;
	e = event_new(CDM_EV_WRITE, CDM_PROBE_WATCHPOINT, 0, vma, 0);
	if (e) {
		event_vma(e, vma);
		e->addr = addr;
		e->arg = number;
		e->flags_before = point->last;
		if (point->state == WATCH_LEAVING)
			e->bits |= CDM_BIT_UNLINKED;
		if (READ_FIELD(bpf_get_current_task(), u32, OFF_task_struct_flags) &
		    0x00200000 /* PF_KTHREAD */)
			e->bits |= CDM_BIT_KTHREAD;
		point->last = e->flags_after;
		event_stack(e, &ctx->regs);
		/* Another cpu was in here meanwhile: which has made what? */
		e->ret = begun != point->begun || begun - point->ended != 1;
		event_submit(e);
	} else {
		point->last = VMA_FLAGS(vma);
	}
	__sync_fetch_and_add(&point->ended, 1);
	return 0;
}

/*
 * unmap_vmas(tlb, mt, vma, start, end): nobody finds these VMAs any more, and who
 * tears them down may write as he likes.
 */
int watch_unmap(struct pt_regs *ctx)
{
	u64 mm = VMA_MM(ARG(watch_unmap, vma));
	u32 zero = 0;
	struct watchpoints *points = watchpoints.lookup(&zero);
	int i;

	if (!points)
		return 0;
	for (i = 0; i < (int)WATCHES; i++) {
		struct watchpoint *point = &points->w[i];

		if (point->state == WATCH_LIVE && point->mm == mm &&
		    VMA_START(point->vma) >= ARG(watch_unmap, start_addr) &&
		    VMA_END(point->vma) <= ARG(watch_unmap, end_addr))
			point->state = WATCH_LEAVING;
	}
	return 0;
}

/* vm_area_free(vma): from now on what is there is something else. */
int watch_free(struct pt_regs *ctx)
{
	u64 vma = ARG(watch_free, vma);
	u32 zero = 0;
	struct watch_asked_all *asked = watch_asked.lookup(&zero);
	struct watchpoints *points = watchpoints.lookup(&zero);
	int i;

	if (!points || !asked)
		return 0;
	for (i = 0; i < (int)WATCHES; i++) {
		struct watchpoint *point = &points->w[i];

		if (point->vma != vma || !asked->w[i].addr ||
		    (point->state != WATCH_LIVE && point->state != WATCH_LEAVING))
			continue;
		point->state = WATCH_GONE;
		if (is_enabled())
			watch_tell(vma, i, asked->w[i].addr, 1);
	}
	return 0;
}
