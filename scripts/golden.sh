#!/bin/bash
# Make tests/golden anew from the recordings that `make demo demo-foreign` has left.
#
#   scripts/golden.sh [--texts]     --texts: no recording, only what is printed of each
set -euo pipefail

# The life of the VMA that is most worth a look (at an address, if one is given); the
# list, which says so, where there is none.
life() {
	local list
	list=$(cdmtrace timeline "$@")
	eval "$(grep -m1 'cdmtrace timeline .* --pid ' <<<"$list" || echo 'echo "$list"')"
}

declare -A asked=(
	[rfc]=CDM006,CDM009,CDM012,CDM013,CDM015,CDM016,CDM017
	[numa-scanned]=CDM008
	[mergeable-honoured]=CDM007
	[unlocked-clear+slow-rmw]=CDM004
	[task-policy+fault-tag+slow-rmw]=CDM018
	[driver]=CDM019
	[bit-taken]=CDM020
	[services]=CDM014,CDM021
)
rules=$PWD/tests/golden/rules

# What is printed of a recording of a kernel that breaks a rule.
texts_of_rule() {
	local name profile=intended
	name=$(basename "$1" .arrows)
	test "$name" != services || profile=np
	cd "$(dirname "$1")"
	cdmtrace check --profile $profile --rules "${asked[$name]}" "$name.arrows" \
		>"$rules/$name.check.txt" || test $? = 1
	life "$name.arrows" >"$rules/$name.life.txt"
}

for name in cdm-6.1/rfc cdm-6.1/none foreign-6.1/rfc; do
	golden=tests/golden/${name/\//-}
	if [ "${1:-}" != --texts ]; then
		cp "demo/$name/story.arrows" "$golden.arrows"
		chmod 644 "$golden.arrows"
	fi
	status=0
	cdmtrace check "$golden.arrows" >"$golden.check.txt" || status=$?
	cdmtrace report "$golden.arrows" >"$golden.report.txt"
	cdmtrace timeline "$golden.arrows" >"$golden.timeline.txt"
	life "$golden.arrows" --addr 100040000000 >"$golden.life.txt"
	echo "$golden: check ends with $status"
done

golden=tests/golden
cdmtrace compare $golden/cdm-6.1-{rfc,none}.arrows >$golden/mended.compare.txt
cdmtrace compare $golden/cdm-6.1-{none,rfc}.arrows >$golden/broken.compare.txt ||
	test $? = 1

# One check in every format: a rule is broken, one in the baseline, one vacuous.
for form in table json ndjson csv markdown sarif junit tap github; do
	cdmtrace check --rules CDM003,CDM005,CDM006 --baseline $golden/known.toml \
		--format $form $golden/cdm-6.1-{rfc,none}.arrows \
		>$golden/forms.check.$form || test $? = 1
done

if [ "${1:-}" = --texts ]; then
	unpacked=$(mktemp -d)
	trap 'rm -rf "$unpacked"' EXIT
	for packed in "$rules"/*.arrows.xz; do
		trace=$unpacked/$(basename "$packed" .xz)
		xz -dc "$packed" >"$trace"
		(texts_of_rule "$trace")
	done
	exit
fi

# Each rule in a recording of a kernel that breaks it, small enough to be kept.
rm -rf demo/rules "$rules"
mkdir -p demo/rules "$rules"
rows=rfc,numa-scanned,mergeable-honoured
rows+=,unlocked-clear+slow-rmw,task-policy+fault-tag+slow-rmw
# 1: a row must find more than one scenario shows, and what it needs is in the other.
cdmtrace lab matrix --quirks "$rows" --scenarios defects --keep demo/rules/defects ||
	test $? = 1
cdmtrace lab matrix --quirks driver --keep demo/rules/driver
# The bit of the posted patches, which is VM_SYNC by now.
cdmtrace lab run --run-dir demo/rules/bit-taken -- cdmtrace record --force \
	--vm-cdm-mask 0x800000 -o bit-taken.arrows -- true
# Services of the kernel, on one that nobody has patched, and that names no CDM node.
# shellcheck disable=SC2016
cdmtrace lab run --kernel debian-6.1 --scenario services --run-dir demo/rules/services -- \
	sh -c 'exec "$0" record --cdm-nodes 1 -o services.arrows -- "$@" --cdm-node 1' \
	"$(command -v cdmtrace)"
for trace in demo/rules/*/*.arrows; do
	(texts_of_rule "$trace")
	xz -9 <"$trace" >"$rules/$(basename "$trace").xz"
done
