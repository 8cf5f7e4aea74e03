// SPDX-License-Identifier: GPL-2.0
/* What idiom.py attaches. It stands behind the program of record, for its macros. */

struct told {
	u64 ts, since, mm, vma, start, end, addr, before, after;
	s64 stack;
	u32 pid, tid;
	char comm[16];
	u8 lock_before, lock_after, kind;
};

struct begun {
	u64 since, vma, addr, flags;
	u8 lock;
};

BPF_RINGBUF_OUTPUT(told_of, 4096);
BPF_HASH(begun, u32, struct begun);
BPF_STACK_TRACE(told_stacks, 4096);

static inline int tell(struct pt_regs *ctx, u64 vma, struct begun *b, u8 kind)
{
	struct told *t = told_of.ringbuf_reserve(sizeof(struct told));

	if (!t)
		return 0;
	t->ts = bpf_ktime_get_ns();
	t->since = b->since;
	t->mm = VMA_MM(vma);
	t->vma = vma;
	t->start = VMA_START(vma);
	t->end = VMA_END(vma);
	t->addr = b->addr;
	t->before = b->flags;
	t->after = VMA_FLAGS(vma);
	t->stack = told_stacks.get_stackid(ctx, 0);
	t->pid = bpf_get_current_pid_tgid() >> 32;
	t->tid = bpf_get_current_pid_tgid();
	bpf_get_current_comm(&t->comm, sizeof(t->comm));
	t->lock_before = b->lock;
	t->lock_after = mmap_lock_state(t->mm);
	t->kind = kind;
	told_of.ringbuf_submit(t, 0);
	return 0;
}

int idiom_entry(struct pt_regs *ctx)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct begun b = {};

	b.since = bpf_ktime_get_ns();
	b.vma = PT_REGS_PARM3(ctx);
	b.addr = PT_REGS_PARM4(ctx);
	b.flags = VMA_FLAGS(b.vma);
	b.lock = mmap_lock_state(VMA_MM(b.vma));
	begun.update(&tid, &b);
	return 0;
}

int idiom_return(struct pt_regs *ctx)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct begun *b = begun.lookup(&tid), kept;

	if (!b)
		return 0;
	kept = *b;
	begun.delete(&tid);
	if (!IS_CDM_NODE(page_node(PT_REGS_RC(ctx))) &&
	    VMA_FLAGS(kept.vma) == kept.flags)
		return 0;
	return tell(ctx, kept.vma, &kept, 1);
}

int idiom_map(struct pt_regs *ctx)
{
	struct begun b = {};
	u64 vma = PT_REGS_PARM2(ctx);

	if (!IS_CDM_NODE(page_node(PT_REGS_PARM1(ctx))))
		return 0;
	b.since = bpf_ktime_get_ns();
	b.addr = PT_REGS_PARM3(ctx);
	b.flags = VMA_FLAGS(vma);
	b.lock = mmap_lock_state(VMA_MM(vma));
	return tell(ctx, vma, &b, 2);
}
