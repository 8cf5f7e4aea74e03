/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the scenario programs share: options, TAP output, raw system calls,
 * a reader for smaps, and a model of one region that says what a kernel with
 * a given set of quirks must show.
 *
 * A scenario is one C file that includes this header and is linked statically,
 * so that it runs in a guest that has nothing. Every action is done twice: to
 * the kernel by the system call and to the model by its model_*() twin. The
 * expect_*() functions then compare the two, page by page. The quirks enter the
 * model only, each at one place, so any subset of them is judged by the same
 * lines.
 */
#ifndef CDM_SCENARIO_H
#define CDM_SCENARIO_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/mempolicy.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE	0x100000
#endif
#ifndef MADV_COLD
#define MADV_COLD		20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT		21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25	/* Linux 6.1 */
#endif
#ifndef SYS_set_mempolicy_home_node
#define SYS_set_mempolicy_home_node	450
#endif
/* An enumerator in the headers that have it (5.15), so #ifdef cannot tell. */
#define POL_PREFERRED_MANY	5

#define PAGE		4096UL
#define HUGE_PAGE	(2UL << 20)
#define HUGE_NR		(HUGE_PAGE / PAGE)
#define GIB		(1UL << 30)

/* Regions are a GiB apart: no two of them can ever become one VMA. */
#define ARENA_START	0x100000000000UL
#define ARENA_SLOTS	64
#define ARENA_END	(ARENA_START + ARENA_SLOTS * GIB)

/* Where a step needs a second or third region: within its GiB, far away */
#define SECOND		(GIB / 4)
#define THIRD		(GIB / 2)

#define MAX_PAGES	2048
#define MAX_REGIONS	48
#define STEP_SECONDS	300

/* A scenario that has nothing to do with CDM nodes says so before it includes this. */
#ifndef SCENARIO_NEEDS_NODES
#define SCENARIO_NEEDS_NODES	true
#endif

#define UNUSED		__attribute__((unused))
#define PRINTF(f, a)	__attribute__((format(printf, f, a)))
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#include "quirks.h"
#include "tap.h"
#include "system.h"
#include "model.h"
#include "readback.h"
#include "actions.h"
#include "machine.h"

/* ---- main ------------------------------------------------------------ */

struct step {
	const char *name;
	const char *what;
	void (*run)(void);
	bool slow;		/* only with --slow or when named by --step */
};

static volatile sig_atomic_t released;

static void on_release(int sig)
{
	(void)sig;
	released = 1;
}

/* Wait for a line on stdin or SIGUSR1; a stdin that has ended says nothing. */
static void hold(const char *when)
{
	struct pollfd in = { .fd = STDIN_FILENO, .events = POLLIN };
	sigset_t none;

	sigemptyset(&none);
	alarm(0);
	say(STDOUT_FILENO, "READY %d %s\n", getpid(), when);
	while (!released) {
		char c = 0;
		ssize_t n;

		if (ppoll(&in, 1, NULL, &none) < 0)
			continue;
		n = read(STDIN_FILENO, &c, 1);
		if (n <= 0)
			in.fd = -1;
		else if (c == '\n')
			break;
	}
	released = 0;
}

/*
 * NUMA balancing scans whoever has run for a second, which on a busy host comes early.
 * What it has scanned is nowhere until it is used, as move_pages() has it, and goes to
 * another node then. So it is off while steps run, but for those that are about it.
 */
#define BALANCING	"/proc/sys/kernel/numa_balancing"

/* Returns what to give to balancing_on() afterwards. */
static long balancing_off(void)
{
	long before = read_long(BALANCING);

	if (before > 0 && write_long(BALANCING, 0))
		before = 0;
	return before;
}

static void balancing_on(long before)
{
	if (before > 0)
		write_long(BALANCING, before);
}

/* The lines of numa_maps that belong to the arena, unchanged */
static bool save_numa_maps(const char *path)
{
	char *line, *next;
	int fd;

	if (read_text("/proc/self/numa_maps", smaps_text,
		      sizeof(smaps_text)) < 0)
		return false;
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return false;
	for (line = smaps_text; line && *line; line = next) {
		unsigned long addr;

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		addr = strtoul(line, NULL, 16);
		if (addr >= ARENA_START && addr < ARENA_END)
			say(fd, "%s\n", line);
	}
	return !close(fd);
}

/* What of this header can be tried on any kernel */
static void self_test(void)
{
	unsigned long mask;
	unsigned int set;
	struct region *r;
	char text[256];

	current_step = "self-test";
	report(parse_node_list("1\n", &mask) && mask == 2, "node list 1");
	report(parse_node_list("1-2,4", &mask) && mask == 0x16,
	       "node list 1-2,4");
	report(parse_node_list("", &mask) && !mask, "empty node list");
	report(!parse_node_list("1-", &mask) && !parse_node_list("x", &mask) &&
	       !parse_node_list("2-1", &mask) && !parse_node_list("64", &mask),
	       "node lists that are none");
	report(parse_quirks("none", &set, text, sizeof(text)) && !set,
	       "quirks none");
	report(parse_quirks("one-way,fault-tag", &set, text, sizeof(text)) &&
	       set == (1U << Q_ONE_WAY | 1U << Q_FAULT_TAG | 1U << Q_BIND_ONLY) &&
	       parse_quirks("thp-untagged", &set, text, sizeof(text)) &&
	       set == (1U << Q_THP_UNTAGGED | 1U << Q_FAULT_TAG |
		       1U << Q_BIND_ONLY),
	       "a quirk brings what it needs");
	report(!parse_quirks("one-way,nonsense", &set, text, sizeof(text)) &&
	       !strcmp(text, "nonsense"), "a quirk that is none");
	report(!parse_quirks("one-way,", &set, text, sizeof(text)),
	       "a list that ends in a comma");
	report(has_flag(" rd wr mr mw me ac cd ", "cd") &&
	       has_flag(" cd", "cd") && !has_flag(" rd wr", "cd") &&
	       !has_flag(" cdx xcd", "cd") && !has_flag("", "cd"),
	       "flags of a VmFlags line");

	/* An ordinary VMA, split by hand: 0-4 rw, 5-6 r, 7-10 rw */
	if (ram_node < 0)
		ram_node = 0;
	r = map_anon("ordinary", 0, 0, 11);
	if (!r)
		return;
	expect_state(r, "untouched");
	fault_pages(r, 0, 11);
	expect_state(r, "faulted");
	expect_vmas(r, "one");
	mprotect((void *)(r->start + 5 * PAGE), 2 * PAGE, PROT_READ);
	for (set = 5; set < 7; set++)
		r->p[set].prot = PROT_READ;
	expect_vmas(r, "split by mprotect");
	expect_flags(r, "split by mprotect");

	/* The model, against what the thread says of the posted patches */
	r = &regions[nr_regions++];
	memset(r, 0, sizeof(*r));
	r->nr = 53;
	quirks = 0;
	model_mbind(r, 11, 19, MPOL_BIND, CDM);
	report(!r->p[10].tag && r->p[11].tag && r->p[29].tag && !r->p[30].tag,
	       "model: a partial mbind tags its range");
	model_mbind(r, 11, 19, MPOL_DEFAULT, 0);
	report(!r->p[11].tag, "model: the tag goes with the policy");
	quirks = 1U << Q_WHOLE_VMA | 1U << Q_ONE_WAY;
	model_mbind(r, 11, 19, MPOL_BIND, CDM);
	report(r->p[0].tag && r->p[52].tag, "model: whole-vma");
	model_mbind(r, 0, 53, MPOL_BIND, RAM);
	report(r->p[0].tag && r->p[11].tag, "model: one-way");
	memset(r->p, 0, sizeof(r->p));
	quirks = 1U << Q_BIND_ONLY | 1U << Q_FAULT_TAG;
	model_mbind(r, 0, 53, MPOL_PREFERRED, CDM);
	report(!r->p[0].tag, "model: bind-only");
	model_fault(r, 7, MPOL_DEFAULT, 0);
	report(r->p[0].tag && r->p[7].place == ON_CDM, "model: fault-tag");
	quirks = 1U << Q_UNLOCKED_CLEAR | 1U << Q_ONE_WAY;
	model_leave_cdm(r, 6);
	report(r->p[0].tag, "model: unlocked-clear, a page that was not there");
	model_leave_cdm(r, 7);
	report(!r->p[0].tag && !r->p[52].tag, "model: unlocked-clear");
	quirks = 1U << Q_SPLIT_DROP;
	model_mbind(r, 0, 53, MPOL_BIND, CDM);
	model_protect(r, 11, 19, PROT_READ);
	report(!r->p[10].tag && r->p[11].tag && r->p[29].tag && !r->p[30].tag &&
	       !model_is_one_vma(r), "model: split-drop");
	quirks = 1U << Q_MPROTECT_DROP;
	model_mbind(r, 0, 53, MPOL_BIND, CDM);
	model_protect(r, 11, 19, PROT_WRITE);
	report(r->p[10].tag && !r->p[11].tag && !r->p[29].tag && r->p[30].tag,
	       "model: mprotect-drop");
	quirks = 0;
}

static bool chosen(const char *list, const char *name)
{
	size_t len = strlen(name);

	while (*list) {
		size_t n = strcspn(list, ",");

		if (n == len && !strncmp(list, name, n))
			return true;
		list += n + (list[n] == ',');
	}
	return false;
}

static PRINTF(1, 2) void trouble(const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	say(STDERR_FILENO, "%s: %s\n", program, text);
	exit(2);
}

static void usage(int fd)
{
	say(fd,
	    "usage: %s [OPTIONS]\n"
	    "  --quirks LIST       quirks that are on in this kernel, by commas, or none\n"
	    "  --cdm-node N        the CDM node; else the first one of\n"
	    "                      " NODE_DIR "is_coherent_device\n"
	    "  --step NAME[,NAME]  only these steps\n"
	    "  --list              list the steps\n"
	    "  --slow              also the steps that fill a whole node, or take memory away\n"
	    "  --hold              print READY and the pid, and wait for a line on stdin\n"
	    "                      or SIGUSR1, before the first step and after the last\n"
	    "  --hold-before NAME  the same before this step\n"
	    "  --numa-maps FILE    at the end, copy the numa_maps lines of the regions\n"
	    "exit status: 0 all passed, 1 a check failed, 2 trouble\n",
	    program);
}

static void find_nodes(long wanted)
{
	unsigned long memory, named = 0;
	bool exported = read_nodes("is_coherent_device", &named);

	if (!read_nodes("has_memory", &memory))
		trouble("cannot read " NODE_DIR "has_memory: no NUMA kernel?");
	if (wanted < 0 && !exported)
		trouble("this kernel names no CDM node (no " NODE_DIR
			"is_coherent_device); boot the lab's kernel, or give --cdm-node");
	if (wanted < 0 && !named)
		trouble("the list of CDM nodes in " NODE_DIR
			"is_coherent_device is empty; boot with cdm-nodes=, or give --cdm-node");
	cdm_nodes = wanted < 0 ? named : named | 1UL << wanted;
	cdm_node = wanted < 0 ? __builtin_ctzl(named) : wanted;
	if (!(memory >> cdm_node & 1))
		trouble("node %d has no memory", cdm_node);
	if (!(memory & ~cdm_nodes))
		trouble("node %d would leave no node for RAM", cdm_node);
	ram_node = __builtin_ctzl(memory & ~cdm_nodes);
}

static void check_step_names(const char *list, const struct step *steps,
			     unsigned int nr)
{
	while (*list) {
		size_t len = strcspn(list, ",");
		unsigned int i;

		for (i = 0; i < nr; i++)
			if (strlen(steps[i].name) == len &&
			    !strncmp(list, steps[i].name, len))
				break;
		if (i == nr)
			trouble("no step is called '%.*s'; see --list",
				(int)len, list);
		list += len + (list[len] == ',');
	}
}

static int scenario_main(int argc, char **argv, const struct step *steps,
			 unsigned int nr)
{
	enum { QUIRKS = 256, CDM_NODE, STEP, LIST, SLOW, HOLD,
	       HOLD_BEFORE, NUMA_MAPS, SELF_TEST, HELP };
	static const struct option options[] = {
		{ "quirks", required_argument, NULL, QUIRKS },
		{ "cdm-node", required_argument, NULL, CDM_NODE },
		{ "step", required_argument, NULL, STEP },
		{ "list", no_argument, NULL, LIST },
		{ "slow", no_argument, NULL, SLOW },
		{ "hold", no_argument, NULL, HOLD },
		{ "hold-before", required_argument, NULL, HOLD_BEFORE },
		{ "numa-maps", required_argument, NULL, NUMA_MAPS },
		{ "self-test", no_argument, NULL, SELF_TEST },
		{ "help", no_argument, NULL, HELP },
		{ NULL, 0, NULL, 0 }
	};
	bool list = false, slow = false, held = false, self = false;
	const char *only = NULL, *hold_before = NULL, *numa_maps = NULL;
	struct sigaction act = { .sa_handler = on_release };
	char text[512], *end;
	long wanted = -1, balancing;
	unsigned int i;
	int c;

	program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case QUIRKS:
			if (!parse_quirks(optarg, &quirks, text, sizeof(text)))
				trouble("no quirk is called '%s'", text);
			break;
		case CDM_NODE:
			wanted = strtol(optarg, &end, 10);
			if (!isdigit((unsigned char)*optarg) || *end ||
			    wanted > 63)
				trouble("'%s' is not a node number", optarg);
			break;
		case STEP:
			only = optarg;
			break;
		case LIST:
			list = true;
			break;
		case SLOW:
			slow = true;
			break;
		case HOLD:
			held = true;
			break;
		case HOLD_BEFORE:
			hold_before = optarg;
			break;
		case NUMA_MAPS:
			numa_maps = optarg;
			break;
		case SELF_TEST:
			self = true;
			break;
		case HELP:
			usage(STDOUT_FILENO);
			return 0;
		default:
			usage(STDERR_FILENO);
			return 2;
		}
	}
	if (optind < argc) {
		usage(STDERR_FILENO);
		return 2;
	}
	if (list) {
		for (i = 0; i < nr; i++)
			say(STDOUT_FILENO, "%-16s%s%s\n", steps[i].name,
			    steps[i].what, steps[i].slow ? " (slow)" : "");
		return 0;
	}
	if (only)
		check_step_names(only, steps, nr);
	if (hold_before)
		check_step_names(hold_before, steps, nr);
	if (!self && SCENARIO_NEEDS_NODES)
		find_nodes(wanted);

	if (held || hold_before) {
		sigset_t block;

		sigemptyset(&block);
		sigaddset(&block, SIGUSR1);
		sigprocmask(SIG_BLOCK, &block, NULL);
		sigaction(SIGUSR1, &act, NULL);
	}
	act.sa_handler = on_fault;
	sigaction(SIGBUS, &act, NULL);
	sigaction(SIGSEGV, &act, NULL);

	say(STDOUT_FILENO, "TAP version 13\n");
	if (self) {
		self_test();
		nr = 0;
	} else {
		quirks_text(text, sizeof(text), quirks);
		diag("%s: CDM node %d, RAM node %d, quirks %s", program,
		     cdm_node, ram_node, text);
	}
	if (held)
		hold("before");
	balancing = balancing_off();
	for (i = 0; i < nr; i++) {
		if (only ? !chosen(only, steps[i].name) :
			   steps[i].slow && !slow)
			continue;
		current_step = steps[i].name;
		diag("%s: %s", steps[i].name, steps[i].what);
		if (hold_before && chosen(hold_before, steps[i].name))
			hold("before");
		/* A kernel that spins in a fault ends the run, not the guest. */
		alarm(STEP_SECONDS);
		steps[i].run();
	}
	alarm(0);
	balancing_on(balancing);
	current_step = "end";
	if (numa_maps && !save_numa_maps(numa_maps)) {
		report(false, "numa_maps copied to %s", numa_maps);
		diag("expected a copy, found %s", errno_name(errno));
	}
	say(STDOUT_FILENO, "1..%u\n", tap_run);
	diag("%u of %u passed", tap_run - tap_failed, tap_run);
	if (held)
		hold("after");
	return tap_failed ? 1 : 0;
}

#endif /* CDM_SCENARIO_H */
