/* SPDX-License-Identifier: GPL-2.0-only */
/* The lab's demonstration driver, as the kernel's linux/cdm_demo.h has it */
#ifndef CDM_DEMO_H
#define CDM_DEMO_H

#include <linux/ioctl.h>
#include <stdint.h>
#include <sys/ioctl.h>

struct cdm_demo_range {
	uint64_t start;
	uint64_t end;
	int32_t pid;
	int32_t nid;
};

#define CDM_DEMO_MIGRATE	_IOW(0xCD, 0x20, struct cdm_demo_range)
#define CDM_DEMO_DEVICE		"/dev/cdm-demo"

#endif /* CDM_DEMO_H */
