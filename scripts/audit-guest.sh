#!/bin/sh
# Runs in a guest: a mixed load on both nodes, recorded, with a look at all of it
# once in a while, when it stands still.
#
#   audit-guest.sh SECONDS EVERY CHURN RECORD...
#
# RECORD is the recorder's command, without a command of its own to record. Leaves
# audit.arrows in the working directory.
set -eu

seconds=$1 every=$2 churn=$3
shift 3

groups=/tmp/audit-cgroup
mkdir -p $groups
mount -t cgroup2 none $groups
mkdir $groups/load

if [ -e /sys/block/zram0 ]; then
	echo 256M >/sys/block/zram0/disksize
	busybox mkswap /dev/zram0 >/dev/null
	busybox swapon /dev/zram0
fi
echo 1 >/sys/kernel/mm/ksm/run
echo 500 >/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs || true

cat >load.sh <<END
bad=
echo \$\$ >$groups/load/cgroup.procs
$churn --seconds $seconds --jobs 2 >churn.tap &
stress-ng --timeout $seconds --temp-path /tmp \
	--vm 1 --vm-bytes 16M --mmap 1 --mmap-bytes 8M --mremap 1 --mremap-bytes 8M \
	--madvise 1 --fork 1 --numa 1 --brk 1 --stack 1 \
	--shm 1 --shm-bytes 4M --shm-objs 4 --memfd 1 --memfd-bytes 8M \
	>stress-ng.log 2>&1 || bad=\$?
wait
tail -n 1 churn.tap
# That one stressor failed (2), found no room (3) or counted little (7) is to be seen, and
# no reason to throw the recording away.
case \$bad in
"") ;;
[237]) cat stress-ng.log >&2; bad= ;;
*) cat stress-ng.log >&2; bad="stress-ng" ;;
esac
grep -q '^ok' churn.tap || bad=churn
test -z "\$bad" || echo "audit: \$bad has failed" >&2
test -z "\$bad"
END
# The recorder comes first, and writes to memory: what the ring cannot hold is lost, and
# with it what was to be proved.
status=0
"$@" -o /tmp/audit.arrows --audit "$every" --freeze $groups/load -- \
	nice -n 19 sh ./load.sh || status=$?
mv /tmp/audit.arrows . || test $status -ne 0
exit $status
