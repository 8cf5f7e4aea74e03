// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes vm_flags of a VMA under the lock that it is told, be it the wrong one
 *
 * For kernels that nobody has patched: whatever a tracer finds there, this module
 * has done. It allocates a page for the VMA, as drivers do, and writes vm_flags in
 * the midst of the allocation, which is where patch 11/12 of the RFC has them
 * written. A kprobe takes it there, as no line of the kernel does.
 */
#include <linux/gfp.h>
#include <linux/kprobes.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "flag_writer.h"

/* Writes under way: each thread has one at most. */
struct pending {
	struct task_struct *task;
	struct vm_area_struct *vma;
	unsigned long set;
	unsigned int delay_ms;
	bool written;
};

/* A slot that is taken, with no write in it (yet). It is no task's address. */
#define TAKEN	((struct task_struct *)1)

static struct pending pending[8];

static struct pending *find_pending(const struct task_struct *task)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pending); i++)
		if (READ_ONCE(pending[i].task) == task)
			return &pending[i];
	return NULL;
}

/* By the clock: what mdelay() goes by is wrong on some cpus of an emulated machine. */
static void be_busy(unsigned int ms)
{
	u64 until = ktime_get_ns() + (u64)ms * NSEC_PER_MSEC;

	while (ktime_get_ns() < until)
		cpu_relax();
}

/*
 * vm_flags is one word that is loaded, changed and stored: so it is here. That a task
 * is there, and no interrupt upon it, can be told as the probe is ftrace's
 * (CONFIG_KPROBES_ON_FTRACE), and no breakpoint, which would be an exception.
 */
static int in_allocation(struct kprobe *probe, struct pt_regs *regs)
{
	struct pending *write = in_task() ? find_pending(current) : NULL;
	unsigned long flags;

	if (!write || write->written)
		return 0;
	flags = READ_ONCE(write->vma->vm_flags);
	be_busy(write->delay_ms);
	WRITE_ONCE(write->vma->vm_flags, flags | write->set);
	write->written = true;
	return 0;
}

/* What every allocation of pages comes to: renamed by commit 84172f4bb752. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 13, 0)
#define ALLOCATOR	"__alloc_pages_nodemask"
#else
#define ALLOCATOR	"__alloc_pages"
#endif

static struct kprobe allocation = {
	.symbol_name = ALLOCATOR,
	.pre_handler = in_allocation,
};

static struct pending *begin(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pending); i++) {
		if (cmpxchg(&pending[i].task, NULL, TAKEN))
			continue;
		pending[i].written = false;
		return &pending[i];
	}
	return NULL;
}

static int allocate(struct pending *write, struct vm_area_struct *vma,
		    const struct flag_write *asked)
{
	struct page *page;

	write->vma = vma;
	write->set = asked->set;
	write->delay_ms = asked->delay_ms;
	WRITE_ONCE(write->task, current);
	page = alloc_page_vma(GFP_HIGHUSER_MOVABLE, vma, asked->addr);
	WRITE_ONCE(write->task, TAKEN);
	if (page)
		__free_page(page);
	return write->written ? 0 : -EIO;
}

static int write_flags(struct mm_struct *mm, struct pending *write,
		       const struct flag_write *asked)
{
	struct vm_area_struct *vma;
	int err = -EFAULT;

	if (asked->lock == FLAG_WRITER_WRITE)
		mmap_write_lock(mm);
	else
		mmap_read_lock(mm);
	vma = find_vma(mm, asked->addr);
	if (vma && vma->vm_start > asked->addr)
		vma = NULL;
	if (asked->lock == FLAG_WRITER_UNLOCKED)
		/* That the VMA stays is up to the caller, who could unmap it. */
		mmap_read_unlock(mm);
	if (vma)
		err = allocate(write, vma, asked);
	if (asked->lock == FLAG_WRITER_WRITE)
		mmap_write_unlock(mm);
	else if (asked->lock == FLAG_WRITER_READ)
		mmap_read_unlock(mm);
	return err;
}

static long flag_writer_ioctl(struct file *file, unsigned int cmd,
			      unsigned long arg)
{
	struct flag_write asked;
	struct pending *write;
	int err;

	if (cmd != FLAG_WRITER_WRITE_FLAGS)
		return -ENOTTY;
	if (copy_from_user(&asked, (void __user *)arg, sizeof(asked)))
		return -EFAULT;
	if (asked.lock > FLAG_WRITER_WRITE || asked.delay_ms > FLAG_WRITER_MAX_MS)
		return -EINVAL;
	write = begin();
	if (!write)
		return -EBUSY;
	err = write_flags(current->mm, write, &asked);
	smp_store_release(&write->task, NULL);
	return err;
}

static const struct file_operations flag_writer_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = flag_writer_ioctl,
};

static struct miscdevice flag_writer = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "flag-writer",
	.fops = &flag_writer_fops,
	.mode = 0600,
};

static int __init flag_writer_init(void)
{
	int err = register_kprobe(&allocation);

	if (err)
		return err;
	err = misc_register(&flag_writer);
	if (err)
		unregister_kprobe(&allocation);
	return err;
}

static void __exit flag_writer_exit(void)
{
	misc_deregister(&flag_writer);
	unregister_kprobe(&allocation);
}

module_init(flag_writer_init);
module_exit(flag_writer_exit);
MODULE_DESCRIPTION("Writes vm_flags under a lock of the caller's choice");
MODULE_LICENSE("GPL");
