#!/bin/sh
# Installs what Sauh drives and what its tests need, on Debian 12. Can be run
# again: what is there already is left alone. Says what it installs.
#
#   setup.sh run     what a node, the machine room and the tests need (apt)
#   setup.sh lint    the linter, into ~/.cache/sauh/tools (Go module proxy, a few minutes once)
set -eu
cd "$(dirname "$0")/.."

GO=${GO:-go}
GOLANGCI_VERSION=v2.15.0
TOOLS=${SAUH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sauh}/tools

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# From Debian 12 itself: compiler for the race detector, firewall, addresses, boot loader of the probe guest's image,
# a simulated BMC (ipmi_sim).
BASE='gcc libc6-dev nftables iproute2 iputils-ping syslinux syslinux-common mtools e2fsprogs openipmi ca-certificates'
# From bookworm-backports: QEMU 7.2 of Debian 12 corrupts guests that are migrated without KVM.
BACKPORTS='qemu-system-x86 qemu-utils'

missing() {
	for p in "$@"; do
		dpkg-query -W -f='${Status}\n' "$p" 2>/dev/null | grep -q '^install ok installed' || printf '%s ' "$p"
	done
}

qemu_major() {
	qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p'
}

run() {
	. /etc/os-release
	[ "${ID:-}" = debian ] || die "this set-up knows Debian 12; here is ${PRETTY_NAME:-another system}: install by hand: $BASE $BACKPORTS (QEMU 10 or newer)"
	[ "$(id -u)" = 0 ] || die "installing packages needs root: run it with sudo"
	base=$(missing $BASE)
	qemu=$(missing $BACKPORTS)
	major=$(qemu_major)
	if [ -n "$major" ] && [ "$major" -lt 10 ]; then qemu=$BACKPORTS; fi
	if [ -z "$base$qemu" ]; then
		say "all packages are there (QEMU $(qemu-system-x86_64 --version | sed -n '1s/.*version \([0-9.]*\).*/\1/p'))"
		return
	fi
	if [ -n "$qemu" ] && [ "${VERSION_ID:-}" = 12 ] && ! grep -rqs 'bookworm-backports' /etc/apt/sources.list /etc/apt/sources.list.d; then
		say "adding the source bookworm-backports in /etc/apt/sources.list.d/sauh-backports.list"
		echo 'deb http://deb.debian.org/debian bookworm-backports main' >/etc/apt/sources.list.d/sauh-backports.list
	fi
	export DEBIAN_FRONTEND=noninteractive
	say "apt-get update"
	apt-get update -qq || say "apt-get update reported errors; going on with the lists that are there"
	if [ -n "$base" ]; then
		say "installing: $base"
		apt-get install -y -qq --no-install-recommends $base >/dev/null
	fi
	if [ -n "$qemu" ]; then
		say "installing from backports: $qemu"
		if [ "${VERSION_ID:-}" = 12 ]; then
			apt-get install -y -qq --no-install-recommends -t bookworm-backports $qemu >/dev/null
		else
			apt-get install -y -qq --no-install-recommends $qemu >/dev/null
		fi
	fi
	say "done: $(qemu-system-x86_64 --version | head -n 1)"
}

lint() {
	command -v "$GO" >/dev/null || die "Go is not installed: https://go.dev/dl, version $(sed -n 's/^go //p' go.mod) or newer"
	if ! "$TOOLS/golangci-lint" version 2>/dev/null | grep -q "${GOLANGCI_VERSION#v}"; then
		say "building golangci-lint $GOLANGCI_VERSION into $TOOLS (about three minutes, once)"
		mkdir -p "$TOOLS"
		GOFLAGS='' GOBIN=$TOOLS "$GO" install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$GOLANGCI_VERSION"
	fi
}

case "${1:-run}" in
run) run ;;
lint) lint ;;
*) die "unknown part '$1': use run or lint" ;;
esac
