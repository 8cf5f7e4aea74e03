// SPDX-License-Identifier: GPL-2.0
/* --- snapshots ---------------------------------------------------------- */

static __always_inline int is_recorder(void)
{
	return bpf_get_current_pid_tgid() >> 32 == RECORDER && is_enabled();
}

/* show_numa_map(m, vma): one line of /proc/PID/numa_maps */
int snapshot_entry(struct pt_regs *ctx)
{
	struct entry entry = {};

	slot_begin(SLOT_SNAPSHOT);
	if (!is_recorder())
		return 0;
	entry_vma(&entry, ARG(snapshot_entry, v));
	entry.probe = CDM_PROBE_SNAPSHOT;
	/* m->private: a numa_maps_private, which begins with a proc_maps_private. */
	entry.arg[0] = READ_FIELD(ARG(snapshot_entry, m), u64, OFF_seq_file_private);
	slot_put(SLOT_SNAPSHOT, &entry);
	return 0;
}

/* Pages of one VMA on one node, as numa_maps counts them. */
static __always_inline u64 counted(u64 private, int nid)
{
	return READ_FIELD(private + OFF_numa_maps_private_md + OFF_numa_maps_node +
			  nid * sizeof(u64), u64, 0);
}

static __always_inline u32 looked_at(u64 private)
{
	return READ_FIELD(READ_FIELD(private, u64, OFF_proc_maps_private_task), u32,
			  OFF_task_struct_tgid);
}

int snapshot_return(struct pt_regs *ctx)
{
	struct entry entry;
	struct cdm_event *e;
	u64 nodes, there = 0;
	int nid, about;

	if (!slot_take(SLOT_SNAPSHOT, &entry))
		return 0;
	/* User space looks at no other. */
	follow(entry.mm);
	if (!vma_in_addr(entry.vma))
		return 0;
	for (nid = 0; nid < 64; nid++)
		if (MEMORY_NODES >> nid & 1 && IS_FOLLOWED(nid) &&
		    !vma_is_hugetlb(entry.vma) && counted(entry.arg[0], nid))
			there |= 1ULL << nid;
	read_policy(VMA_POLICY(entry.vma), &nodes);
	about = there || NAMES_CDM(nodes) || entry.flags & CDM_MASK;
	if (about)
		watch(entry.mm);
	if (!about && !is_watched(entry.mm))
		return 0;
	e = event_new(CDM_EV_SNAP_VMA, CDM_PROBE_SNAPSHOT, entry.ts, entry.vma, 0);
	if (!e)
		return 0;
	event_vma(e, entry.vma);
	e->pid = looked_at(entry.arg[0]);
	event_submit(e);
	for (nid = 0; nid < 64; nid++) {
		if (!(MEMORY_NODES >> nid & 1) || !(there >> nid & 1))
			continue;
		e = event_new(CDM_EV_SNAP_PAGES, CDM_PROBE_SNAPSHOT, entry.ts,
			      entry.vma, 0);
		if (!e)
			continue;
		event_vma(e, entry.vma);
		e->pid = looked_at(entry.arg[0]);
		e->node = nid;
		e->size = counted(entry.arg[0], nid) * PAGE_SIZE;
		event_submit(e);
	}
	return 0;
}

/* proc_map_release(inode, file): the recorder has read it all */
int snapshot_end(struct pt_regs *ctx)
{
	u64 seq, private, mm;
	struct cdm_event *e;

	if (!is_recorder())
		return 0;
	seq = READ_FIELD(ARG(snapshot_end, file), u64, OFF_file_private_data);
	private = READ_FIELD(seq, u64, OFF_seq_file_private);
	mm = READ_FIELD(private, u64, OFF_proc_maps_private_mm);
	if (!is_watched(mm))
		return 0;
	e = event_new(CDM_EV_SNAP_MM, CDM_PROBE_SNAPSHOT, 0, 0, mm);
	if (!e)
		return 0;
	e->mm = pointer_id(mm);
	e->pid = looked_at(private);
	event_submit(e);
	return 0;
}
