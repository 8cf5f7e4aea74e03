// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program takes a PCI device by vfio-pci, and reads a register of it
 *
 * As a virtual machine's monitor does, or a driver in user space. Up to Linux 6.9 the
 * first access to a BAR has vfio-pci's fault handler call remap_pfn_range(), which
 * writes vm_flags, and a fault holds the mmap lock for read. The flag that comes with
 * it, VM_PAT, smaps shows as "ar".
 *
 * For a kernel that nobody has patched, in a guest with an IOMMU and with QEMU's device
 * for education: lab run --device intel-iommu --device edu. Whether a recording must
 * show a write at the first access is told by what smaps shows: tell() in tools.h.
 */
#define SCENARIO_NEEDS_NODES	false
#include "tools.h"

#include <dirent.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <spawn.h>

#define PCI_DIR		"/sys/bus/pci/"
#define EDU_ID		"0x11e8"
#define EDU_REGISTER	0x010000edU	/* what it says at the start of its BAR 0 */

#define BAR		(ARENA_START + GIB)

extern char **environ;

static int device = -1;
static unsigned long bar_size;
static bool mapped;

/* ---- Taking the device ----------------------------------------------- */

static bool find_device(char *name, size_t size)
{
	struct dirent *entry;
	bool found = false;
	DIR *dir = opendir(PCI_DIR "devices");

	while (dir && !found && (entry = readdir(dir))) {
		char path[512], id[16];

		snprintf(path, sizeof(path), PCI_DIR "devices/%s/device",
			 entry->d_name);
		if (read_text(path, id, sizeof(id)) < 0 || strcmp(id, EDU_ID))
			continue;
		found = (size_t)snprintf(name, size, "%s", entry->d_name) < size;
	}
	if (dir)
		closedir(dir);
	return found;
}

static bool load_driver(void)
{
	static char *const words[] = { "modprobe", "vfio-pci", NULL };
	int status = -1;
	pid_t pid;

	return !posix_spawnp(&pid, words[0], NULL, NULL, words, environ) &&
	       waitpid(pid, &status, 0) == pid && !status;
}

/* The number of the IOMMU's group that the device is in, as a path of /dev */
static bool find_group(const char *name, char *path, size_t size)
{
	char link[128], target[256];
	const char *number;
	ssize_t len;

	snprintf(link, sizeof(link), PCI_DIR "devices/%s/iommu_group", name);
	len = readlink(link, target, sizeof(target) - 1);
	if (len < 0)
		return false;
	target[len] = '\0';
	number = strrchr(target, '/');
	return number && (size_t)snprintf(path, size, "/dev/vfio%s", number) < size;
}

static int bind_device(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), PCI_DIR "devices/%s/driver_override", name);
	return write_text(path, "vfio-pci") ?: write_text(PCI_DIR "drivers_probe", name);
}

static int open_device(const char *name, const char *group_path)
{
	int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	int group = open(group_path, O_RDWR | O_CLOEXEC);

	if (container < 0 || group < 0 ||
	    ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) ||
	    ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU))
		return errno;
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	return device < 0 ? errno : 0;
}

/* The device answers at its BARs once this is on; who takes it may find it off. */
static int enable_memory(void)
{
	struct vfio_region_info config = {
		.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	uint16_t command;
	off_t at;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
		return errno;
	at = config.offset + PCI_COMMAND;
	if (pread(device, &command, sizeof(command), at) != sizeof(command))
		return EIO;
	command |= PCI_COMMAND_MEMORY;
	return pwrite(device, &command, sizeof(command), at) == sizeof(command) ?
	       0 : EIO;
}

static int map_bar(void)
{
	struct vfio_region_info bar = {
		.argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX,
	};

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar))
		return errno;
	if (mmap((void *)BAR, bar.size, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED_NOREPLACE, device,
		 bar.offset) != (void *)BAR)
		return errno;
	bar_size = bar.size;
	return 0;
}

/* ---- Steps ----------------------------------------------------------- */

static bool shows(const char *flag)
{
	return read_vmas(BAR, BAR + bar_size) == 1 && has_flag(vmas[0].flags, flag);
}

static void step_map(void)
{
	char name[64], group[64];

	if (!find_device(name, sizeof(name))) {
		report(false, "QEMU's edu is there (lab run --device edu)");
		return;
	}
	if (!load_driver()) {
		report(false, "modprobe vfio-pci");
		return;
	}
	if (!find_group(name, group, sizeof(group))) {
		report(false, "an IOMMU has it (lab run --device intel-iommu)");
		return;
	}
	mapped = expect_errno(bind_device(name), 0, "%s is bound", name) &&
		 expect_errno(open_device(name, group), 0, "it is opened") &&
		 expect_errno(enable_memory(), 0, "its memory is enabled") &&
		 expect_errno(map_bar(), 0, "its BAR 0 is mapped");
	if (mapped)
		report(shows("pf") && shows("io") && shows("de") && shows("dd") &&
		       !shows("ar"), "mmap() has set pf, io, de and dd, and not ar");
}

static void step_touch(void)
{
	uint32_t found;

	if (!mapped)
		return;
	found = *(volatile uint32_t *)BAR;
	report(found == EDU_REGISTER, "the device answers");
	if (found != EDU_REGISTER)
		diag("expected %#x, found %#x", EDU_REGISTER, found);
	tell("CDM003", BAR, bar_size / PAGE, shows("ar") ? YES : NO);
}

static void step_again(void)
{
	bool before;

	if (!mapped)
		return;
	before = shows("ar");
	(void)*(volatile uint32_t *)(BAR + PAGE);
	report(shows("ar") == before, "no flag comes or goes");
}

/* The same flags are written under the lock for write: nothing is to be found. */
static void step_protect(void)
{
	if (!mapped)
		return;
	expect_errno(mprotect((void *)BAR, bar_size, PROT_READ) ? errno : 0, 0,
		     "mprotect()");
	report(!shows("wr"), "the VMA cannot be written any more");
}

static const struct step steps[] = {
	{ "map", "a device is taken, and its BAR mapped", step_map, false },
	{ "touch", "the first access to the BAR", step_touch, false },
	{ "again", "an access to another page of it", step_again, false },
	{ "protect", "mprotect() of the BAR", step_protect, false },
};

int main(int argc, char **argv)
{
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
