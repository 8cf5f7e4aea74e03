// SPDX-License-Identifier: GPL-2.0-only
/*
 * The other doors to a CDM page: shmem, hugetlb, KSM, swap, files, khugepaged
 *
 * A VMA may hold pages of a CDM node only where its own policy names that node.
 * The story program goes through the front doors; this one tries those that the
 * mail thread only hints at. Each step needs something of the machine (root, a
 * swap device, a huge page pool); one that lacks it is skipped and says so.
 * Step N is at 0x100000000000 + (32 + N) GiB.
 */
#include "tools.h"

#include <sys/vfs.h>

#define TMPFS_MAGIC_NUMBER	0x01021994

enum {
	SLOT_SHMEM = 33,
	SLOT_HUGETLB,
	SLOT_HOME_NODE,
	SLOT_PREFERRED_MANY,
	SLOT_KSM,
	SLOT_KSM_UNMERGE,
	SLOT_SWAP,
	SLOT_PAGE_CACHE,
	SLOT_SHARED,
	SLOT_COLLAPSE,
	SLOT_REBIND,
	SLOT_HUGE_PARTS,
	SLOT_SPILL,
	SLOT_EXHAUST,	/* takes as many GiB as the CDM node has, and one */
};

/* ---- Policies that belong to more than one VMA ----------------------- */

/*
 * A refused mbind() leaves everything as it was. An allowed one, under quirk
 * shared-policy, brings CDM pages; whether the VMA named in the call is tagged
 * then is not judged here.
 */
static void try_shared(struct region *r)
{
	bool open = quirk(Q_SHARED_POLICY);
	static const int modes[] = { MPOL_BIND, MPOL_PREFERRED };
	unsigned int i;
	int err;

	if (!r)
		return;
	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		err = sys_mbind(r->start, r->nr * PAGE, modes[i], CDM, 0);
		expect_errno(err, open ? 0 : EOPNOTSUPP,
			     "%s: mbind(%s, {cdm})", r->name,
			     mode_text(modes[i]));
	}
	if (!open)
		expect_flags(r, r->name);
	if (!fault_pages(r, 0, r->nr))
		return;
	for (i = 0; open && i < r->nr; i++)
		r->p[i].place = ON_CDM;
	expect_nodes(r, r->name);
	if (open)
		return;
	expect_flags(r, r->name);
	bind_pages(r, 0, r->nr, MPOL_BIND, RAM, 0, 0);
	expect_state(r, r->name);
}

static void step_shmem(void)
{
	int fd;

	try_shared(map_region("shared anonymous", SLOT_SHMEM, 0, 17,
			      MAP_SHARED | MAP_ANONYMOUS, -1));
	fd = memfd_create("scenario", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 19 * PAGE)) {
		skip("mbind on a memfd", "no memfd_create");
	} else {
		try_shared(map_region("memfd", SLOT_SHMEM, SECOND, 19,
				      MAP_SHARED, fd));
	}
	if (fd >= 0)
		close(fd);
}

static const char pool_path[] = "/proc/sys/vm/nr_hugepages";

static void step_hugetlb(void)
{
	static int status[2 * HUGE_NR];
	long before = read_long(pool_path), pool;
	char node_path[128];
	struct region *r;
	bool per_node;
	int err;

	snprintf(node_path, sizeof(node_path),
		 NODE_DIR "node%d/hugepages/hugepages-2048kB/nr_hugepages",
		 cdm_node);
	if (before < 0) {
		skip("hugetlb", "no huge page pool in this kernel");
		return;
	}
	if (write_long(pool_path, before + 2)) {
		skip("hugetlb", "the huge page pool cannot be written, not root?");
		return;
	}
	per_node = read_long(node_path) >= 0;
	report(!per_node || !read_long(node_path),
	       "a growing pool takes nothing from the CDM node");
	if (per_node && read_long(node_path))
		diag("expected 0, found %ld", read_long(node_path));
	if (per_node) {
		err = write_long(node_path, 1);
		pool = read_long(node_path);
		report(!pool, "the CDM node's own pool stays empty");
		if (pool)
			diag("expected 0, found %ld (write: %s)", pool,
			     errno_name(err));
		write_long(node_path, 0);
	}
	pool = read_long(pool_path);
	if (pool < before + 2) {
		skip("hugetlb mapping", "the pool did not get two huge pages");
		write_long(pool_path, before);
		return;
	}
	r = map_region("hugetlb", SLOT_HUGETLB, 0, 2 * HUGE_NR,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	if (r) {
		long ret;

		err = sys_mbind(r->start, r->nr * PAGE, MPOL_BIND, CDM, 0);
		expect_errno(err, EOPNOTSUPP, "hugetlb: mbind(BIND, {cdm})");
		err = sys_mbind(r->start, r->nr * PAGE, MPOL_PREFERRED, CDM, 0);
		expect_errno(err, EOPNOTSUPP,
			     "hugetlb: mbind(PREFERRED, {cdm})");
		expect_flags(r, "hugetlb");
		if (fault_pages(r, 0, 1) && fault_pages(r, HUGE_NR, 1)) {
			bool ok;

			/* Tail pages are not asked for: heads are enough. */
			ret = sys_move_pages(r->start, r->nr, -1, status, 0);
			ok = !ret && status[0] >= 0 && status[HUGE_NR] >= 0 &&
			     status[0] != cdm_node && status[HUGE_NR] != cdm_node;
			report(ok, "hugetlb: 2 huge pages on RAM");
			if (!ok)
				diag("expected RAM, found %s, %s",
				     status_text(status[0]),
				     status_text(status[HUGE_NR]));
		}
		/* The pool is given back; this region cannot stay. */
		munmap((void *)r->start, r->nr * PAGE);
	}
	write_long(pool_path, before);
}

/* ---- Policies with more than one node -------------------------------- */

static void step_home_node(void)
{
	struct region *r = map_anon("home RAM", SLOT_HOME_NODE, 0, 11);
	struct region *both = map_anon("home CDM", SLOT_HOME_NODE, SECOND, 13);
	unsigned int i;
	int err;

	if (!r || !both)
		return;
	if (!since(5, 17)) {
		skip("set_mempolicy_home_node()", "not in this kernel");
		return;
	}
	bind_pages(r, 0, 11, MPOL_BIND, RAM, 0, 0);
	err = sys_home_node(r->start, r->nr * PAGE, cdm_node);
	expect_errno(err, EINVAL,
		     "BIND {ram}: set_mempolicy_home_node(cdm)");
	if (fault_pages(r, 0, 11))
		expect_state(r, "BIND {ram}");

	bind_pages(both, 0, 13, MPOL_BIND, RAM | CDM, 0, 0);
	err = sys_home_node(both->start, both->nr * PAGE, cdm_node);
	expect_errno(err, 0, "BIND {ram,cdm}: set_mempolicy_home_node(cdm)");
	expect_flags(both, "BIND {ram,cdm}, home on the CDM node");
	if (!fault_pages(both, 0, 13))
		return;
	for (i = 0; i < both->nr; i++)
		both->p[i].place = ON_CDM;
	expect_state(both, "BIND {ram,cdm}, home on the CDM node");
}

/*
 * PREFERRED_MANY of both nodes may take either. Where the fault decides about
 * the tag, it decides by the page that it got, so that is read first.
 */
static void step_preferred_many(void)
{
	struct region *r = map_anon("many {cdm}", SLOT_PREFERRED_MANY, 0, 23);
	struct region *both = map_anon("many {ram,cdm}", SLOT_PREFERRED_MANY,
				       SECOND, 29);
	unsigned int i;

	if (!r || !both)
		return;
	if (!has_preferred_many()) {
		skip("PREFERRED_MANY", "not in this kernel");
		return;
	}
	bind_pages(r, 0, 23, POL_PREFERRED_MANY, CDM, 0, 0);
	expect_flags(r, "{cdm}: after mbind");
	if (fault_pages(r, 0, 23))
		expect_state(r, "{cdm}: after 23 faults");

	bind_pages(both, 0, 29, POL_PREFERRED_MANY, RAM | CDM, 0, 0);
	expect_flags(both, "{ram,cdm}: after mbind");
	if (!fault_pages(both, 0, 29))
		return;
	if (quirk(Q_FAULT_TAG)) {
		bool any = count_on(both, ON_CDM);

		for (i = 0; i < both->nr; i++)
			both->p[i].tag = any;
	}
	expect_state(both, "{ram,cdm}: after 29 faults");
}

static int set_task_policy(int mode, const unsigned long *mask)
{
	return syscall(SYS_set_mempolicy, mode, mask,
		       mask ? MASK_BITS : 0) ? errno : 0;
}

/* Every mode is refused; nothing is touched while one is in force. */
static void step_task_modes(void)
{
	static const int modes[] = {
		MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, POL_PREFERRED_MANY,
	};
	int err[ARRAY_SIZE(modes)][2];
	unsigned long mask[2] = { kernel_mask(CDM), kernel_mask(RAM | CDM) };
	unsigned int i, j;

	memset(err, 0, sizeof(err));
	set_task_policy(MPOL_DEFAULT, NULL);
	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		for (j = 0; j < 2; j++) {
			err[i][j] = set_task_policy(modes[i], &mask[j]);
			set_task_policy(MPOL_DEFAULT, NULL);
		}
	}
	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		bool known = modes[i] != POL_PREFERRED_MANY ||
			     has_preferred_many();
		int refused = known ? EPERM : EINVAL;

		for (j = 0; j < 2; j++) {
			/* PREFERRED takes the first node of the mask only. */
			if (modes[i] == MPOL_PREFERRED && j)
				continue;
			expect_errno(err[i][j],
				     known && quirk(Q_TASK_POLICY) ? 0 : refused,
				     "set_mempolicy(%s, %s)",
				     mode_text(modes[i]),
				     set_text(j ? RAM | CDM : CDM));
		}
	}
}

/* ---- KSM ------------------------------------------------------------- */

/* Overwrite the pages so that those of equal @seed and number are alike. */
static void alike(const struct region *r, uint64_t seed)
{
	unsigned int i;

	for (i = 0; i < r->nr; i++)
		write_page(r->start + i * PAGE, seed << 32 | (i + 1));
}

static unsigned int merged_pairs(const struct region *a, const struct region *b)
{
	unsigned int i, nr = 0;

	for (i = 0; i < a->nr && i < b->nr; i++) {
		uint64_t pfn = pfn_of(a->start + i * PAGE);

		nr += pfn && pfn == pfn_of(b->start + i * PAGE);
	}
	return nr;
}

/* A VMA without a policy that holds pages of the CDM node */
static struct region *leftovers(const char *name, unsigned int slot,
				unsigned long offset, unsigned int nr)
{
	struct region *r = map_anon(name, slot, offset, nr);

	if (!r)
		return NULL;
	if (!bind_pages(r, 0, nr, MPOL_BIND, CDM, 0, 0) ||
	    !fault_pages(r, 0, nr) ||
	    !bind_pages(r, 0, nr, MPOL_DEFAULT, 0, 0, 0))
		return NULL;
	return r;
}

static void step_ksm(void)
{
	struct region *a, *b, *ram, *cdm;
	unsigned int nr, i;
	bool may;

	if (!ksm_ready("KSM and pages of the CDM node"))
		return;
	a = leftovers("left A", SLOT_KSM, 0, 17);
	b = leftovers("left B", SLOT_KSM, SECOND, 17);
	ram = map_anon("in RAM", SLOT_KSM, THIRD, 19);
	cdm = leftovers("left C", SLOT_KSM, THIRD + SECOND, 19);
	if (!a || !b || !ram || !cdm || !fault_pages(ram, 0, 19))
		return;
	alike(a, 0xa);
	alike(b, 0xa);
	alike(ram, 0xc);
	alike(cdm, 0xc);
	advise_mergeable(a);
	advise_mergeable(b);
	advise_mergeable(ram);
	advise_mergeable(cdm);
	expect_state(a, "left A: before ksmd");
	expect_state(b, "left B: before ksmd");
	/* Still tagged, under one-way, they are out of KSM's reach. */
	may = quirk(Q_KSM_MERGE) && a->p[0].mergeable;

	if (ksm_scan(5)) {
		nr = merged_pairs(a, b);
		report(may ? nr > 0 : !nr, may ?
		       "pages of the CDM node are merged" :
		       "no page of the CDM node is merged");
		if (may ? !nr : nr)
			diag("expected %s of 17, found %u", may ? "some" : "0",
			     nr);
		/* Which of the two pages stays is up to ksmd. */
		for (i = 0; may && i < ram->nr; i++)
			ram->p[i].place = ANYWHERE;
		expect_nodes(ram, "in RAM: after ksmd");
		expect_flags(ram, "in RAM: after ksmd");
	}
	ksm_restore();
}

static void step_ksm_unmerge(void)
{
	struct region *e, *f;
	unsigned int nr, i;

	if (!ksm_ready("KSM pages in a VMA that is tagged"))
		return;
	e = map_anon("merged E", SLOT_KSM_UNMERGE, 0, 13);
	f = map_anon("merged F", SLOT_KSM_UNMERGE, SECOND, 13);
	if (!e || !f || !fault_pages(e, 0, 13) || !fault_pages(f, 0, 13))
		return;
	alike(e, 0xe);
	alike(f, 0xe);
	advise_mergeable(e);
	advise_mergeable(f);
	if (ksm_scan(5)) {
		/* Says that ksmd works here, and so for the step before, too. */
		nr = merged_pairs(e, f);
		report(nr == 13, "ksmd merges 13 pairs in RAM");
		if (nr != 13)
			diag("expected 13, found %u", nr);
		bind_pages(e, 0, 13, MPOL_BIND, CDM, 0, 0);
		/* A page taken back out may come from either policy. */
		for (i = 0; i < e->nr; i++)
			e->p[i].place = ANYWHERE;
		expect_state(e, "merged E: after mbind");
		nr = merged_pairs(e, f);
		report(quirk(Q_KSM_LEFT_ON) ? nr == 13 : !nr,
		       "pages are %s after the tag",
		       quirk(Q_KSM_LEFT_ON) ? "still merged" : "no longer merged");
		if (quirk(Q_KSM_LEFT_ON) ? nr != 13 : nr)
			diag("expected %d, found %u",
			     quirk(Q_KSM_LEFT_ON) ? 13 : 0, nr);
		expect_state(f, "merged F: untouched");
	}
	ksm_restore();
}

/* ---- Swap ------------------------------------------------------------ */

static bool go_on(int fd)
{
	char c;

	return read(fd, &c, 1) == 1;
}

/*
 * A page in swap belongs to two children. The VMA of the keeper still names
 * the CDM node, that of the other no longer does. The other reads the first
 * half before the keeper does; the second half after, when the page that the
 * keeper read in is in the swap cache.
 */
static struct region *swapped;
static int to_child[2], to_parent[2];

static void swap_other(void *arg)
{
	unsigned int half = swapped->nr / 2, i, cdm[2] = { 0, 0 };

	(void)arg;
	close(to_parent[0]);
	bind_pages(swapped, 0, swapped->nr, MPOL_BIND, RAM, 0, 0);
	read_pages(swapped->start, half);
	write_all(to_parent[1], "c", 1);
	if (!go_on(to_child[0])) {
		report(false, "the keeper reads the second half in");
		return;
	}
	read_pages(swapped->start + half * PAGE, swapped->nr - half);
	sys_move_pages(swapped->start, swapped->nr, -1, page_status, 0);
	for (i = 0; i < swapped->nr; i++)
		cdm[i >= half] += !strcmp(status_text(page_status[i]), "CDM");
	report(!cdm[0], "rebound to RAM: pages read in here are on RAM");
	if (cdm[0])
		diag("expected 0 of %u on the CDM node, found %u", half, cdm[0]);
	if (quirk(Q_SWAP_READAHEAD)) {
		report(cdm[1], "rebound to RAM: pages that the keeper read in are on the CDM node");
		if (!cdm[1])
			diag("expected some of %u, found 0", swapped->nr - half);
	} else {
		report(!cdm[1], "rebound to RAM: pages that the keeper read in are on RAM");
		if (cdm[1])
			diag("expected 0 of %u on the CDM node, found %u",
			     swapped->nr - half, cdm[1]);
	}
}

static void swap_keeper(void)
{
	unsigned int half = swapped->nr / 2;

	close(to_child[0]);
	close(to_parent[1]);
	if (!go_on(to_parent[0]))
		return;
	read_pages(swapped->start + half * PAGE, swapped->nr - half);
	write_all(to_child[1], "p", 1);
	/* Stay, so that the pages stay shared, until the other is gone. */
	while (go_on(to_parent[0]))
		;
}

static void step_swap(void)
{
	const char *reason = swap_begin();
	pid_t keeper;

	if (reason) {
		skip("a swapped page of two processes", reason);
		return;
	}
	swapped = map_anon("swapped", SLOT_SWAP, 0, 34);
	if (!swapped || !bind_pages(swapped, 0, 34, MPOL_BIND, CDM, 0, 0) ||
	    !fault_pages(swapped, 0, 34))
		goto out;
	expect_state(swapped, "before");
	if (!page_out(swapped, 34))
		goto out;
	if (pipe2(to_child, O_CLOEXEC))
		goto out;
	if (pipe2(to_parent, O_CLOEXEC)) {
		close(to_child[0]);
		close(to_child[1]);
		goto out;
	}
	keeper = fork();
	if (!keeper) {
		alarm(STEP_SECONDS);
		swap_keeper();
		_exit(0);
	}
	/* Only the keeper may hold this end, or its death goes unnoticed. */
	close(to_child[1]);
	if (keeper > 0)
		in_child(swap_other, NULL);
	else
		report(false, "fork");
	close(to_child[0]);
	close(to_parent[0]);
	close(to_parent[1]);
	if (keeper > 0)
		waitpid(keeper, NULL, 0);
	/* Back in, where the policy says, or where the child has put them */
	read_pages(swapped->start, 34);
	expect_flags(swapped, "after");
out:
	swap_end();
}

/* ---- Pages that are not only this VMA's ------------------------------ */

static void try_file(const char *name, unsigned long offset, int flags, int fd,
		     bool tmpfs)
{
	struct region *r = map_region(name, SLOT_PAGE_CACHE, offset, 7, flags,
				      fd);
	unsigned int i;

	if (!r)
		return;
	read_pages(r->start, 7);
	for (i = 0; i < 7; i++)
		r->p[i].place = ON_RAM;
	expect_state(r, name);
	if (quirk(Q_MIGRATION_UNGATED) && !tmpfs) {
		/* Not every file system can migrate its pages. */
		bool refused = false;

		sys_move_pages(r->start, 7, cdm_node, page_status,
			       MPOL_MF_MOVE);
		for (i = 0; i < 7; i++) {
			refused = refused || page_status[i] == -EACCES;
			r->p[i].place = ANYWHERE;
		}
		report(!refused, "%s: move_pages(cdm) is not refused", name);
		if (refused)
			diag("expected another status, found EACCES");
	} else {
		move_region(r, ON_CDM, MPOL_MF_MOVE);
	}
	expect_state(r, name);
}

static void step_page_cache(void)
{
	const char *dir = getenv("TMPDIR");
	char path[256], page[PAGE];
	struct statfs fs;
	unsigned int i, j;
	int fd;

	for (i = 0; i < 2; i++) {
		bool tmpfs;

		snprintf(path, sizeof(path), "%s/scenario-XXXXXX",
			 dir && *dir ? dir : "/tmp");
		fd = mkstemp(path);
		if (fd < 0) {
			skip("pages of a file",
			     "no file can be made in TMPDIR or /tmp");
			return;
		}
		unlink(path);
		for (j = 0; j < 7; j++) {
			memset(page, 'a' + j, sizeof(page));
			write_all(fd, page, sizeof(page));
		}
		fsync(fd);
		tmpfs = !fstatfs(fd, &fs) && fs.f_type == TMPFS_MAGIC_NUMBER;
		if (i)
			try_file("shared file", SECOND, MAP_SHARED, fd, tmpfs);
		else
			try_file("private file", 0, MAP_PRIVATE, fd, tmpfs);
		close(fd);
	}
}

/*
 * Pages that parent and child share. To move them takes MOVE_ALL. Of the
 * second region only the parent's VMA names the CDM node, and the pages are
 * the child's as well.
 */
static void step_shared(void)
{
	struct region *common, *rebound;
	pid_t helper;
	unsigned int i;

	common = map_anon("no policy", SLOT_SHARED, 0, 11);
	rebound = map_anon("policy in the parent", SLOT_SHARED, SECOND, 13);
	if (!common || !rebound || !fault_pages(common, 0, 11) ||
	    !fault_pages(rebound, 0, 13))
		return;
	if (pipe2(to_child, O_CLOEXEC))
		return;
	if (pipe2(to_parent, O_CLOEXEC)) {
		close(to_child[0]);
		close(to_child[1]);
		return;
	}
	helper = fork();
	if (helper < 0) {
		report(false, "fork");
		goto out;
	}
	if (!helper) {
		/* Nothing but a second owner of the pages */
		close(to_child[1]);
		close(to_parent[0]);
		write_all(to_parent[1], "c", 1);
		go_on(to_child[0]);
		_exit(0);
	}
	go_on(to_parent[0]);

	move_region(common, ON_CDM, MPOL_MF_MOVE_ALL);
	expect_state(common, "no policy");

	bind_pages(rebound, 0, 13, MPOL_BIND, CDM, 0, 0);
	if (quirk(Q_MIGRATION_UNGATED)) {
		move_region(rebound, ON_CDM, MPOL_MF_MOVE_ALL);
	} else {
		long ret = sys_move_pages(rebound->start, 13, cdm_node,
					  page_status, MPOL_MF_MOVE_ALL);

		report(!ret, "policy in the parent: move_pages(cdm, MOVE_ALL) returns 0");
		if (ret)
			diag("expected 0, found %ld", ret);
		for (i = 0; i < 13; i++) {
			want_label[i] = "EACCES";
			got_label[i] = status_text(page_status[i]);
		}
		expect_runs(want_label, got_label, 13,
			    "policy in the parent: move_pages(cdm, MOVE_ALL)",
			    "status");
	}
	expect_state(rebound, "policy in the parent");
out:
	close(to_child[0]);
	close(to_child[1]);
	close(to_parent[0]);
	close(to_parent[1]);
	if (helper > 0)
		waitpid(helper, NULL, 0);
}

/* ---- khugepaged ------------------------------------------------------ */

static void step_collapse(void)
{
	bool open = quirk(Q_KHUGEPAGED), on_cdm;
	long huge = 0;
	struct region *r;
	int err, n, nr;

	r = map_anon("collapse", SLOT_COLLAPSE, 0, HUGE_NR);
	if (!r)
		return;
	if (!has_collapse()) {
		skip("MADV_COLLAPSE", "not in this kernel");
		return;
	}
	/* Small pages first, whatever this machine's default is */
	if (madvise((void *)r->start, HUGE_PAGE, MADV_NOHUGEPAGE)) {
		skip("MADV_COLLAPSE", "no huge pages in this kernel");
		return;
	}
	if (!bind_pages(r, 0, r->nr, MPOL_BIND, CDM, 0, 0) ||
	    !fault_pages(r, 0, r->nr) ||
	    !bind_pages(r, 0, r->nr, MPOL_DEFAULT, 0, 0, 0))
		return;
	expect_state(r, "small pages left on the CDM node");
	madvise((void *)r->start, HUGE_PAGE, MADV_HUGEPAGE);
	err = madvise((void *)r->start, HUGE_PAGE, MADV_COLLAPSE) ? errno : 0;
	nr = read_vmas(r->start, r->start + HUGE_PAGE);
	for (n = 0; n < nr; n++)
		huge += vmas[n].anon_huge;
	on_cdm = huge && count_on(r, ON_CDM);
	report(open ? !err : err, "madvise(COLLAPSE) %s",
	       open ? "succeeds" : "fails");
	if (open ? err : !err)
		diag("expected %s, found %s", open ? "success" : "an error",
		     errno_name(err));
	report(on_cdm == open, "%s huge page on the CDM node",
	       open ? "a" : "no");
	if (on_cdm != open)
		diag("expected %s, found %ld bytes in huge pages, %u of 512 pages on the CDM node",
		     open ? "one" : "none", huge, count_on(r, ON_CDM));
	expect_flags(r, "after madvise(COLLAPSE)");
}

/* ---- Huge pages of which a part is not this VMA's -------------------- */

/* A huge page of RAM in a VMA without a policy */
static struct region *huge_in_ram(const char *name, unsigned long offset)
{
	struct region *r = map_anon(name, SLOT_HUGE_PARTS, offset, HUGE_NR);
	unsigned int i;
	int nr;

	if (!r)
		return NULL;
	madvise((void *)r->start, HUGE_PAGE, MADV_HUGEPAGE);
	if (!fault_pages(r, 0, 1))
		return NULL;
	for (i = 1; i < HUGE_NR; i++)
		model_fault(r, i, MPOL_DEFAULT, 0);
	nr = read_vmas(r->start, r->start + HUGE_PAGE);
	if (nr != 1 || vmas[0].anon_huge != (long)HUGE_PAGE) {
		skip(name, "no huge page could be had");
		return NULL;
	}
	return r;
}

/*
 * A huge page moves as a whole. mbind(MOVE) of one half must not take the other
 * to the CDM node, nor mbind(MOVE) of all of it the half that a child has.
 */
static void move_huge(struct region *r, unsigned int nr, bool shared)
{
	/* What MPOL_MF_MOVE takes for shared it leaves alone, on any kernel. */
	bool all = quirk(Q_MIGRATION_UNGATED) && !shared;
	unsigned int i;

	bind_pages(r, 0, nr, MPOL_BIND, CDM, MPOL_MF_MOVE, 0);
	for (i = 0; i < HUGE_NR; i++)
		r->p[i].place = all ? ON_CDM : ON_RAM;
	expect_state(r, r->name);
}

static void step_huge_parts(void)
{
	static const char path[] = "/sys/kernel/mm/transparent_hugepage/enabled";
	char enabled[64] = "";
	struct region *half, *shared;
	pid_t child;

	read_text(path, enabled, sizeof(enabled));
	if (strstr(enabled, "[never]"))
		write_text(path, "madvise");
	half = huge_in_ram("half of a huge page", 0);
	shared = huge_in_ram("huge page, half of it a child's", SECOND);
	if (strstr(enabled, "[never]"))
		write_text(path, "never");
	if (half)
		move_huge(half, HUGE_NR / 2, false);
	if (!shared || pipe2(to_child, O_CLOEXEC))
		return;
	if (pipe2(to_parent, O_CLOEXEC)) {
		close(to_child[0]);
		close(to_child[1]);
		return;
	}
	child = fork();
	if (!child) {
		alarm(STEP_SECONDS);
		close(to_child[1]);
		close(to_parent[0]);
		/* Before 6.10 the estimate of sharers looks at the first page only. */
		munmap((void *)shared->start, HUGE_PAGE / 2);
		write_all(to_parent[1], "c", 1);
		go_on(to_child[0]);
		_exit(0);
	}
	if (child > 0 && go_on(to_parent[0]))
		move_huge(shared, HUGE_NR, since(6, 10));
	else
		report(false, "a child keeps half of the huge page");
	close(to_child[0]);
	close(to_child[1]);
	close(to_parent[0]);
	close(to_parent[1]);
	if (child > 0)
		waitpid(child, NULL, 0);
}

/* ---- cpusets --------------------------------------------------------- */

static void rebind_child(void *arg)
{
	char both[32], ram[16];
	struct region *r;
	unsigned int i;
	int err;

	(void)arg;
	snprintf(both, sizeof(both), "%d,%d", ram_node, cdm_node);
	snprintf(ram, sizeof(ram), "%d", ram_node);
	if (write_group("cpuset.mems", both) ||
	    write_group("cgroup.procs", "0")) {
		skip("a policy rebound by its cpuset", "no cpuset to enter");
		return;
	}
	r = map_anon("rebound", SLOT_REBIND, 0, 7);
	if (!r)
		return;
	bind_pages(r, 0, 7, MPOL_BIND, CDM, 0, 0);
	if (!fault_pages(r, 0, 7))
		return;
	expect_state(r, "cpuset of both nodes");
	err = write_group("cpuset.mems", ram);
	expect_errno(err, 0, "cpuset.mems without the CDM node");
	/* The policy is {ram} now; the pages follow when the kernel likes. */
	for (i = 0; i < r->nr; i++) {
		r->p[i].set = RAM;
		r->p[i].place = ANYWHERE;
		if (!quirk(Q_NO_REBIND) && !quirk(Q_ONE_WAY))
			r->p[i].tag = false;
	}
	expect_flags(r, "cpuset of RAM only");
}

static void step_rebind(void)
{
	if (!group_begin("a policy rebound by its cpuset"))
		return;
	in_child(rebind_child, NULL);
	group_end();
}

/* ---- Exhaustion ------------------------------------------------------ */

/* One number of a node's meminfo, in bytes; 0 if it is not there */
static unsigned long node_bytes(int nid, const char *what)
{
	char path[128], text[4096], *at;

	snprintf(path, sizeof(path), NODE_DIR "node%d/meminfo", nid);
	if (read_text(path, text, sizeof(text)) < 0)
		return 0;
	at = strstr(text, what);
	return at ? strtoul(at + strlen(what), NULL, 10) * 1024 : 0;
}

struct greed {
	unsigned long cdm, ram;	/* bytes seen on each */
	int status;		/* of the child, as waitpid() gives it */
};

/*
 * A child binds @len bytes to @set and writes them all, telling after each
 * chunk where its pages are. Of all processes, it is the one to kill.
 */
static bool bind_much(unsigned int slot, unsigned int set, unsigned long len,
		      struct greed *greed)
{
	const unsigned long chunk = 4UL << 20;
	unsigned long start = ARENA_START + slot * GIB, at;
	unsigned long said[2] = { 0, 0 };
	unsigned int i;
	int fds[2];
	pid_t pid;

	memset(greed, 0, sizeof(*greed));
	if (pipe2(fds, O_CLOEXEC))
		return false;
	pid = fork();
	if (pid < 0) {
		close(fds[0]);
		close(fds[1]);
		return false;
	}
	if (!pid) {
		write_text("/proc/self/oom_score_adj", "1000");
		signal(SIGBUS, SIG_DFL);
		alarm(quirk(Q_FIRST_NODE) ? STEP_SECONDS / 2 :
					    STEP_SECONDS * 5 / 6);
		if (mmap((void *)start, len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
			 MAP_FIXED_NOREPLACE, -1, 0) != (void *)start ||
		    sys_mbind(start, len, MPOL_BIND, set, 0))
			_exit(3);
		for (at = 0; at < len; at += chunk) {
			for (i = 0; i < chunk / PAGE; i++)
				write_page(start + at + i * PAGE, at + i);
			sys_move_pages(start + at, chunk / PAGE, -1,
				       page_status, 0);
			for (i = 0; i < chunk / PAGE; i++)
				said[page_status[i] != cdm_node] += PAGE;
			write_all(fds[1], (char *)said, sizeof(said));
		}
		_exit(0);
	}
	close(fds[1]);
	while (read(fds[0], said, sizeof(said)) == (ssize_t)sizeof(said)) {
		greed->cdm = said[0];
		greed->ram = said[1];
	}
	close(fds[0]);
	while (waitpid(pid, &greed->status, 0) < 0 && errno == EINTR)
		;
	return true;
}

static bool was_killed(const struct greed *greed)
{
	return WIFSIGNALED(greed->status) &&
	       (WTERMSIG(greed->status) == SIGKILL ||
		WTERMSIG(greed->status) == SIGBUS);
}

static bool ran_out_of_time(const struct greed *greed)
{
	return WIFSIGNALED(greed->status) && WTERMSIG(greed->status) == SIGALRM;
}

/*
 * BIND {ram,cdm} on more than RAM has left: the rest is on the CDM node, unless
 * only the first node of the mask is looked at. Huge pages of the pool, which
 * are never on the CDM node, take RAM away without being written.
 */
static void step_spill(void)
{
	const unsigned long left = 64UL << 20;
	long before = read_long(pool_path);
	unsigned long ram = node_bytes(ram_node, "MemFree:"), len;
	struct greed greed;
	bool ok;
	int err;

	if (before < 0 || ram < left) {
		skip("BIND {ram,cdm}", "no huge page pool to take RAM with");
		return;
	}
	err = write_long(pool_path, before + (ram - left) / HUGE_PAGE);
	expect_errno(err, 0, "spill: the huge page pool takes RAM");
	if (err)
		return;
	/* More than is free now, and than reclaim can make free */
	len = (node_bytes(ram_node, "MemFree:") +
	       node_bytes(ram_node, "FilePages:") +
	       node_bytes(ram_node, "SReclaimable:") + (96UL << 20)) &
	      ~((4UL << 20) - 1);
	ok = bind_much(SLOT_SPILL, RAM | CDM, len, &greed);
	write_long(pool_path, before);
	if (!ok) {
		report(false, "spill: fork");
		return;
	}
	report(greed.ram, "BIND {ram,cdm}: RAM is taken first");
	/*
	 * Without the CDM node there is no end to it but the OOM killer, and on a
	 * slow machine reclaim keeps finding a page of a file until the alarm.
	 */
	if (quirk(Q_FIRST_NODE))
		ok = !greed.cdm && greed.ram < len &&
		     (was_killed(&greed) || ran_out_of_time(&greed));
	else
		ok = greed.cdm && greed.cdm + greed.ram == len && !greed.status;
	report(ok, quirk(Q_FIRST_NODE) ?
	       "BIND {ram,cdm}: with RAM full, the CDM node is not found" :
	       "BIND {ram,cdm}: with RAM full, the CDM node is taken");
	if (!ok)
		diag("found %lu MiB on the CDM node and %lu MiB in RAM of %lu MiB, wait status %#x",
		     greed.cdm >> 20, greed.ram >> 20, len >> 20,
		     (unsigned int)greed.status);
}

/*
 * BIND {cdm} on more than the node has. The child must get a signal (the OOM
 * killer, or SIGBUS), not a page of RAM, and not stand still.
 */
static void step_exhaust(void)
{
	unsigned long total = node_bytes(cdm_node, "MemTotal:"), len;
	struct greed greed;

	len = (total + (64UL << 20)) & ~((4UL << 20) - 1);
	if (!total || ARENA_START + SLOT_EXHAUST * GIB + len > ARENA_END) {
		skip("a full CDM node", "its size is not known, or too large");
		return;
	}
	if (!bind_much(SLOT_EXHAUST, CDM, len, &greed)) {
		report(false, "exhaust: fork");
		return;
	}
	report(greed.cdm && !greed.ram, "BIND {cdm}: no page comes from RAM");
	if (!greed.cdm || greed.ram)
		diag("expected pages of the CDM node only, found %lu MiB there and %lu MiB elsewhere",
		     greed.cdm >> 20, greed.ram >> 20);
	report(was_killed(&greed), "BIND {cdm}: a full node ends in a signal");
	if (!was_killed(&greed))
		diag("expected SIGKILL or SIGBUS, found wait status %#x after %lu MiB",
		     (unsigned int)greed.status, greed.cdm >> 20);
}

static const struct step steps[] = {
	{ "shmem", "mbind() on shared memory", step_shmem, false },
	{ "hugetlb", "mbind() on huge pages, and their pool", step_hugetlb,
	  false },
	{ "home-node", "set_mempolicy_home_node()", step_home_node, false },
	{ "preferred-many", "mbind(PREFERRED_MANY)", step_preferred_many,
	  false },
	{ "task-modes", "set_mempolicy() in every mode", step_task_modes,
	  false },
	{ "ksm", "ksmd and pages left on the CDM node", step_ksm, false },
	{ "ksm-unmerge", "merged pages in a VMA that is tagged",
	  step_ksm_unmerge, false },
	{ "swap", "a swapped page of two processes", step_swap, false },
	{ "page-cache", "move_pages() of file pages", step_page_cache, false },
	{ "shared-pages", "move_pages(MOVE_ALL) of a page of two processes",
	  step_shared, false },
	{ "collapse", "MADV_COLLAPSE of pages left on the CDM node",
	  step_collapse, false },
	{ "huge-parts", "mbind(MOVE) of a part of a huge page",
	  step_huge_parts, false },
	{ "rebind", "a cpuset takes the CDM node away", step_rebind, false },
	{ "spill", "BIND {ram,cdm} on more than RAM has left", step_spill,
	  false },
	{ "exhaust", "BIND {cdm} on more than the node has", step_exhaust,
	  true },
};

int main(int argc, char **argv)
{
	stay_on_this_cpu();
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
