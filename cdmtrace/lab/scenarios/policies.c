// SPDX-License-Identifier: GPL-2.0-only
/*
 * Policies that change by other hands, and pages that come by policies of others
 *
 * A cpuset rebinds the policies of an address space; the policy of a shmem file is
 * that of every VMA that maps it, whoever has set it. A step looks at numa_maps, at
 * smaps, and at the nodes of the pages, and says what it has found,
 * for a recording to be held against:
 *
 *   # rebound step=mems pid=71 addr=0x100040000000 span=7 from=0x2 to=0x1 tag=1>0
 *   # moved step=mems pid=71 addr=0x100080000000 span=11
 *   # arrived step=memfd pid=71 addr=0x100100000000 span=11 way=file by=shared here=1
 *
 * rebound	a cpuset gave the VMA other nodes, or another tag, and CDM nodes or
 *		the tag are in it; from, to: masks of nodes
 * moved	pages that the cpuset took from the CDM node
 * arrived	pages of the CDM node are mapped. way: what did it. by: whose policy
 *		it was (own, shared: of the file, task, or - if another had brought the
 *		page). here: they were allocated for this very VMA
 *
 * The lines are complete for the arena. Region N is at 0x100000000000 + N GiB.
 */
#include "scenario.h"

#include <sys/ipc.h>
#include <sys/shm.h>

#define STATIC_NODES	(1 << 15)	/* MPOL_F_STATIC_NODES, and … */
#define RELATIVE_NODES	(1 << 14)	/* … MPOL_F_RELATIVE_NODES */

/* ---- cpusets --------------------------------------------------------- */

enum {
	PLAIN,
	HELD,
	STATIC,
	RELATIVE,
	SPREAD,
	PREFERRED,
	IN_RAM,
	LATE,
	NR_REBOUND,
};

/* What the cpuset makes of a policy: nodes with RAM only, and with both again */
static const struct {
	const char *name;
	int mode;
	unsigned int set, nr;
	unsigned int in_ram, in_both;
} kinds[NR_REBOUND] = {
	[PLAIN]	    = { "BIND", MPOL_BIND, CDM, 7, RAM, RAM },
	[HELD]	    = { "BIND, with pages", MPOL_BIND, CDM, 11, RAM, RAM },
	[STATIC]    = { "BIND|STATIC", MPOL_BIND | STATIC_NODES, CDM, 13, RAM,
			CDM },
	[RELATIVE]  = { "BIND|RELATIVE", MPOL_BIND | RELATIVE_NODES, RAM | CDM,
			17, RAM, RAM | CDM },
	[SPREAD]    = { "INTERLEAVE", MPOL_INTERLEAVE, RAM | CDM, 19, RAM, RAM },
	/* Its node is not changed by a cpuset. */
	[PREFERRED] = { "PREFERRED", MPOL_PREFERRED, CDM, 5, CDM, CDM },
	[IN_RAM]    = { "BIND of RAM", MPOL_BIND, RAM, 3, RAM, RAM },
	/* Set when there is RAM only */
	[LATE]	    = { "INTERLEAVE|RELATIVE, late",
			MPOL_INTERLEAVE | RELATIVE_NODES, RAM | CDM, 23, RAM,
			RAM | CDM },
};

static struct region *rebound[NR_REBOUND];
static unsigned int nodes_now[NR_REBOUND];

/* What a cpuset with these nodes makes of the policy */
static unsigned int nodes_in(unsigned int kind, bool both)
{
	/* Before Linux 5.14 that node was changed, too. */
	if (kind == PREFERRED && !since(5, 14))
		return RAM;
	return both ? kinds[kind].in_both : kinds[kind].in_ram;
}

/* The groups of cgroup2 did not move pages before: CS_MEMORY_MIGRATE in cpuset.c */
static bool groups_move_pages(void)
{
	return since(5, 15);
}

/*
 * The nodes of the policy of a VMA, as a set; of one with static or relative nodes,
 * get_mempolicy() gives those that were asked for, so this is from numa_maps.
 */
static unsigned int vma_nodes(unsigned long addr)
{
	unsigned long mask = 0;
	char policy[64], *line, *list;

	if (read_text("/proc/self/numa_maps", smaps_text,
		      sizeof(smaps_text)) < 0)
		return 0;
	for (line = strtok(smaps_text, "\n"); line; line = strtok(NULL, "\n")) {
		if (strtoul(line, NULL, 16) != addr ||
		    sscanf(line, "%*x %63s", policy) != 1)
			continue;
		list = strrchr(policy, ':');
		if (!list || !parse_node_list(list + 1, &mask))
			return 0;
	}
	return (mask & kernel_mask(RAM) ? RAM : 0) |
	       (mask & kernel_mask(CDM) ? CDM : 0);
}

static bool vma_tagged(unsigned long start, unsigned int nr)
{
	return read_vmas(start, start + nr * PAGE) == 1 && vmas[0].cd;
}

static void bind_kind(unsigned int kind)
{
	struct region *r = map_anon(kinds[kind].name, kind, 0, kinds[kind].nr);
	int base = kinds[kind].mode & ~(STATIC_NODES | RELATIVE_NODES);
	int err;

	rebound[kind] = r;
	if (!r)
		return;
	err = sys_mbind(r->start, r->nr * PAGE, kinds[kind].mode,
			kinds[kind].set, 0);
	expect_errno(err, 0, "%s: mbind() of %s", r->name,
		     set_text(kinds[kind].set));
	nodes_now[kind] = kind == LATE ? kinds[kind].in_ram : kinds[kind].set;
	model_mbind(r, 0, r->nr, base, nodes_now[kind]);
	report(vma_nodes(r->start) == nodes_now[kind], "%s: policy of %s",
	       r->name, set_text(nodes_now[kind]));
	expect_flags(r, r->name);
}

/* Another task writes it: its mm is not the one that is rebound. */
static bool shell(const char *what, const char *text, const char *path)
{
	char command[600];
	int status;

	snprintf(command, sizeof(command), "echo %s > %s", text, path);
	status = system(command);
	report(!status, "%s", what);
	return !status;
}

static bool set_mems(const char *what, unsigned int set)
{
	char text[32], path[400];

	snprintf(text, sizeof(text), set == RAM ? "%d" : "%d,%d", ram_node,
		 cdm_node);
	snprintf(path, sizeof(path), "%s/cpuset.mems", group);
	return shell(what, text, path);
}

static bool enter(const char *what, const char *dir)
{
	char text[32], path[400];

	snprintf(text, sizeof(text), "%d", getpid());
	snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
	return shell(what, text, path);
}

/* What has become of the policy of one VMA, and of its tag */
static void expect_rebound(unsigned int kind, bool both)
{
	struct region *r = rebound[kind];
	unsigned int to = nodes_in(kind, both);
	unsigned int from = nodes_now[kind], i, found;
	int base = kinds[kind].mode & ~(STATIC_NODES | RELATIVE_NODES);
	bool before, after;

	if (!r)
		return;
	before = after = r->p[0].tag;
	if (!quirk(Q_NO_REBIND) && policy_tags(base, to))
		after = true;
	else if (!quirk(Q_NO_REBIND) && !quirk(Q_ONE_WAY))
		after = false;
	found = vma_nodes(r->start);
	report(found == to, "%s: policy of %s", r->name, set_text(to));
	if (found != to)
		diag("expected %s, found %s", set_text(to), set_text(found));
	for (i = 0; i < r->nr; i++) {
		r->p[i].set = to;
		r->p[i].tag = after;
	}
	expect_flags(r, r->name);
	nodes_now[kind] = to;
	if ((from != to || before != after) &&
	    ((from | to) & CDM || before || after))
		diag("rebound step=%s pid=%d addr=%#lx span=%u from=%#lx to=%#lx tag=%d>%d",
		     current_step, getpid(), r->start, r->nr, kernel_mask(from),
		     kernel_mask(to), before, after);
}

/* One line for each run of pages that are mapped here and on the CDM node */
static unsigned int tell_arrived(unsigned long start, unsigned int nr,
				 const char *way, const char *by, int here)
{
	unsigned int i, from = 0, told = 0;

	sys_move_pages(start, nr, -1, page_status, 0);
	for (i = 0; i <= nr; i++) {
		if (i < nr && page_status[i] == cdm_node)
			continue;
		if (i > from)
			diag("arrived step=%s pid=%d addr=%#lx span=%u way=%s by=%s here=%d",
			     current_step, getpid(), start + from * PAGE,
			     i - from, way, by, here);
		told += i - from;
		from = i + 1;
	}
	return told;
}

static void tell_moved(const struct region *r, unsigned int nr)
{
	diag("moved step=%s pid=%d addr=%#lx span=%u", current_step, getpid(),
	     r->start, nr);
}

/* The pages of the CDM node are gone from a VMA that the cpuset took it from. */
static void expect_moved(struct region *r, unsigned int nr)
{
	unsigned int left = count_on(r, ON_CDM);
	unsigned int expected = groups_move_pages() ? 0 : nr;

	report(left == expected, "%s: %u pages have left the CDM node", r->name,
	       nr - expected);
	if (left != expected)
		diag("expected %u on the CDM node, found %u", expected, left);
	if (left < nr)
		tell_moved(r, nr - left);
}

/* What is told of a step is about its own VMAs. */
static void forget_rebound(void)
{
	unsigned int kind;

	for (kind = 0; kind < NR_REBOUND; kind++) {
		if (rebound[kind])
			munmap((void *)rebound[kind]->start,
			       rebound[kind]->nr * PAGE);
		rebound[kind] = NULL;
	}
}

static void step_mems(void)
{
	unsigned int kind, nr;
	struct region *held, *late;

	if (!group_begin("a cpuset that loses and gets the CDM node"))
		return;
	if (!set_mems("cpuset.mems of both nodes", RAM | CDM) ||
	    !enter("the program enters the group", group))
		goto out;
	for (kind = 0; kind < LATE; kind++)
		bind_kind(kind);
	held = rebound[HELD];
	if (held && fault_pages(held, 0, held->nr)) {
		nr = tell_arrived(held->start, held->nr, "fault", "own", 1);
		report(nr == held->nr, "%u pages on the CDM node", held->nr);
	}

	set_mems("cpuset.mems of RAM", RAM);
	for (kind = 0; kind < LATE; kind++)
		expect_rebound(kind, false);
	if (held)
		expect_moved(held, held->nr);
	bind_kind(LATE);

	set_mems("cpuset.mems of both nodes again", RAM | CDM);
	for (kind = 0; kind < NR_REBOUND; kind++)
		expect_rebound(kind, true);
	late = rebound[LATE];
	if (late && fault_pages(late, 0, late->nr)) {
		nr = tell_arrived(late->start, late->nr, "interleave", "own", 1);
		report(nr >= late->nr / 2 && nr <= late->nr / 2 + 1,
		       "half of %u pages on the CDM node", late->nr);
		expect_flags(late, late->name);
	}
	enter("the program goes back to the root group", group_root);
out:
	forget_rebound();
	group_end();
}

/* A task that goes from one cpuset to another is rebound, too. */
static void step_attach(void)
{
	struct region *plain, *fixed;
	const unsigned int slot = NR_REBOUND;

	if (!group_begin("a task that changes its cpuset"))
		return;
	plain = map_anon("attach, BIND", slot, 0, 7);
	fixed = map_anon("attach, BIND|STATIC", slot, SECOND, 13);
	if (!plain || !fixed || !set_mems("cpuset.mems of RAM", RAM))
		goto out;
	bind_pages(plain, 0, plain->nr, MPOL_BIND, CDM, 0, 0);
	expect_errno(sys_mbind(fixed->start, fixed->nr * PAGE,
			       MPOL_BIND | STATIC_NODES, CDM, 0),
		     0, "%s: mbind()", fixed->name);
	model_mbind(fixed, 0, fixed->nr, MPOL_BIND, CDM);
	rebound[PLAIN] = plain;
	rebound[STATIC] = fixed;
	nodes_now[PLAIN] = nodes_now[STATIC] = CDM;
	enter("the program enters the group", group);
	expect_rebound(PLAIN, false);
	expect_rebound(STATIC, false);
	enter("the program goes back to the root group", group_root);
	expect_rebound(PLAIN, true);
	expect_rebound(STATIC, true);
out:
	forget_rebound();
	group_end();
}

/* ---- Policies of files ----------------------------------------------- */

enum {
	SLOT_MEMFD = NR_REBOUND + 1,
	SLOT_SYSV,
	SLOT_TMPFS,
	SLOT_TASK,
};

static void expect_tag(unsigned long start, unsigned int nr, bool tag,
		       const char *what)
{
	bool found = vma_tagged(start, nr);

	report(found == tag, "%s: %s", what, tag ? "tagged" : "not tagged");
}

static void write_pages(unsigned long start, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		write_page(start + i * PAGE, start + i);
}

static void arrive(unsigned long start, unsigned int nr, const char *way,
		   const char *by, int here, unsigned int expected)
{
	unsigned int found = tell_arrived(start, nr, way, by, here);

	report(found == expected, "%u pages on the CDM node", expected);
	if (found != expected)
		diag("expected %u, found %u", expected, found);
}

/* mbind() of the first mapping; refused but for quirk shared-policy */
static bool bind_file(unsigned long start, unsigned int nr, const char *what)
{
	bool open = quirk(Q_SHARED_POLICY);

	expect_errno(sys_mbind(start, nr * PAGE, MPOL_BIND, CDM, 0),
		     open ? 0 : EOPNOTSUPP, "%s: mbind()", what);
	expect_tag(start, nr, open, what);
	return open;
}

static void memfd_child(void *arg)
{
	struct region *other = arg;

	write_pages(other->start + 11 * PAGE, 7);
	arrive(other->start + 11 * PAGE, 7, "file", "shared", 1, 7);
	expect_tag(other->start, other->nr, false, "a child's mapping");
}

static void step_memfd(void)
{
	struct region *bound, *other, *copy;
	int fd = memfd_create("scenario", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, 19 * PAGE)) {
		skip("the policy of a memfd", "no memfd_create");
		goto out;
	}
	bound = map_region("bound mapping", SLOT_MEMFD, 0, 19, MAP_SHARED, fd);
	other = map_region("other mapping", SLOT_MEMFD, SECOND, 19, MAP_SHARED,
			   fd);
	copy = map_region("private mapping", SLOT_MEMFD, THIRD, 19, MAP_PRIVATE,
			  fd);
	if (!bound || !other || !copy)
		goto out;
	if (!bind_file(bound->start, bound->nr, bound->name)) {
		write_pages(other->start, 11);
		arrive(other->start, 11, "file", "shared", 1, 0);
		goto out;
	}
	write_pages(other->start, 11);
	arrive(other->start, 11, "file", "shared", 1, 11);
	expect_tag(other->start, other->nr, false, other->name);
	/* The fault brings what is there around it, too. */
	read_pages(bound->start, 1);
	arrive(bound->start, 11, "file", "-", 0, 11);
	in_child(memfd_child, other);
	write_pages(copy->start, 5);
	arrive(copy->start, 5, "fault", "shared", 1, 5);
	expect_tag(copy->start, copy->nr, quirk(Q_FAULT_TAG), copy->name);
out:
	if (fd >= 0)
		close(fd);
}

static void step_sysv(void)
{
	unsigned long start = ARENA_START + SLOT_SYSV * GIB;
	unsigned long other = start + SECOND;
	int id = shmget(IPC_PRIVATE, 13 * PAGE, IPC_CREAT | 0600);

	if (id < 0 || shmat(id, (void *)start, 0) != (void *)start ||
	    shmat(id, (void *)other, 0) != (void *)other) {
		skip("the policy of a SysV segment", "no SysV shared memory");
		goto out;
	}
	if (bind_file(start, 13, "SysV segment")) {
		write_pages(other, 5);
		arrive(other, 5, "file", "shared", 1, 5);
		expect_tag(other, 13, false, "SysV segment, second mapping");
	}
out:
	if (id >= 0)
		shmctl(id, IPC_RMID, NULL);
}

/* The policy of a whole file system; no mbind() is called. */
static void step_tmpfs(void)
{
	const char *dir = getenv("TMPDIR");
	char root[256], path[300], option[64];
	struct region *r;
	bool allowed = quirk(Q_SHARED_POLICY);
	int fd = -1, err;

	snprintf(root, sizeof(root), "%s/scenario-XXXXXX",
		 dir && *dir ? dir : "/tmp");
	if (!mkdtemp(root)) {
		skip("tmpfs", "no directory can be made in TMPDIR or /tmp");
		return;
	}
	snprintf(option, sizeof(option), "mpol=bind:%d", cdm_node);
	err = mount("none", root, "tmpfs", 0, option) ? errno : 0;
	expect_errno(err, allowed ? 0 : EINVAL, "mount -t tmpfs -o %s", option);
	if (err)
		goto out;
	snprintf(path, sizeof(path), "%s/file", root);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 7 * PAGE)) {
		report(false, "a file in it");
		goto out;
	}
	r = map_region("file of a tmpfs", SLOT_TMPFS, 0, 7, MAP_SHARED, fd);
	if (!r)
		goto out;
	write_pages(r->start, 7);
	arrive(r->start, 7, "file", "shared", 1, 7);
	expect_tag(r->start, 7, false, r->name);
	munmap((void *)r->start, 7 * PAGE);
out:
	if (fd >= 0)
		close(fd);
	umount(root);
	rmdir(root);
}

/* A file without a policy takes what the task's says. */
static void step_task(void)
{
	int fd = memfd_create("scenario", MFD_CLOEXEC);
	unsigned long mask = kernel_mask(CDM);
	bool open = quirk(Q_TASK_POLICY);
	struct region *r;
	int err;

	if (fd < 0 || ftruncate(fd, 5 * PAGE)) {
		skip("a task policy and a memfd", "no memfd_create");
		goto out;
	}
	r = map_region("file without a policy", SLOT_TASK, 0, 5, MAP_SHARED, fd);
	if (!r)
		goto out;
	err = syscall(SYS_set_mempolicy, MPOL_BIND, &mask, MASK_BITS) ? errno : 0;
	write_pages(r->start, 5);
	syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0);
	expect_errno(err, open ? 0 : EPERM, "set_mempolicy(BIND, {cdm})");
	arrive(r->start, 5, "file", "task", 1, open ? 5 : 0);
	expect_tag(r->start, 5, false, r->name);
out:
	if (fd >= 0)
		close(fd);
}

static const struct step steps[] = {
	{ "mems", "a cpuset loses the CDM node, and gets it back", step_mems,
	  false },
	{ "attach", "a task enters a cpuset without the CDM node", step_attach,
	  false },
	{ "memfd", "the policy of a memfd, in every mapping", step_memfd, false },
	{ "sysv", "the policy of a SysV segment", step_sysv, false },
	{ "tmpfs", "the policy of a tmpfs", step_tmpfs, false },
	{ "task", "a task policy, and a file without one", step_task, false },
};

int main(int argc, char **argv)
{
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
