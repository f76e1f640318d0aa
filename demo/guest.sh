#!/bin/sh
# Build the demo guest: a Debian cloud kernel, and an initramfs of busybox, some modules and demo/init.
#
#   guest.sh [CACHE]        CACHE is ${XDG_CACHE_HOME:-~/.cache}/jitsu/guest if not given
#
# Prints, as its last line, the directory with `vmlinux` (the kernel's ELF, which QEMU boots by PVH without a
# decompressor) and `initramfs`. Packages are downloaded with apt and unpacked with dpkg; nothing is installed, and
# neither root nor, once the guest is in the cache, the network is needed. The file `packages` names their versions; the
# cache's key is this script and demo/init. Two runs at once do no harm: one builds, the other waits.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/jitsu/guest}
net_modules='virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net'
own_modules='virtio_console qemu_fw_cfg'
late_modules='evdev button'

say() { echo "guest: $*" >&2; }
die() { say "$@"; exit 1; }

download() { # download PACKAGE: its .deb, into the current directory
	if [ "$(id -u)" = 0 ]; then set -- -o APT::Sandbox::User=root "$@"; fi
	apt-get -qq download "$@" >&2 || die "cannot download ${*##* }"
}

kernel_package() { # the package that linux-image-cloud-amd64 stands for today
	apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1
}

decompress_kernel() { # decompress_kernel VMLINUZ VMLINUX; the header's fields: Documentation/arch/x86/boot.rst
	python3 - "$1" payload <<-'EOF'
		import struct, sys
		image = open(sys.argv[1], "rb").read()
		offset, length = struct.unpack_from("<II", image, 0x248)  # payload_offset, payload_length
		start = (1 + (image[0x1F1] or 4)) * 512 + offset  # setup_sects, and the boot sector
		open(sys.argv[2], "wb").write(image[start : start + length - 4])  # the last four octets are the ELF's size
	EOF
	case $(od -An -tx1 -N4 payload | tr -d ' ') in
	02214c18)
		lz4=$(command -v lz4) || { download lz4; dpkg -x lz4_*.deb lz4; lz4=lz4/usr/bin/lz4; }
		"$lz4" -dcq payload >"$2" ;;
	fd377a58) xz -dcq payload >"$2" ;;
	1f8b*) gzip -dc payload >"$2" ;;
	28b52ffd) zstd -dcq payload >"$2" ;;
	*) die "do not know how $1 is compressed" ;;
	esac
}

copy_modules() { # copy_modules DIRECTORY NAME...: named 0-NAME.ko, 1-NAME.ko …, so that they load in this order
	directory=$1; shift
	number=0
	for name; do
		file=$(find kernel -name "$name.ko*")
		case $file in
		*.ko) cp "$file" "$directory/$number-$name.ko" ;;
		*.ko.xz) xz -dc "$file" >"$directory/$number-$name.ko" ;;
		*) grep -rq --include=modules.builtin "/$name\.ko" kernel || die "the kernel has no module $name" ;;
		esac
		number=$((number + 1))
	done
}

page() { # page FILE: standard input is its script; it runs in the guest, under busybox httpd
	cat >"$1" && chmod +x "$1"
}

for tool in apt-get dpkg python3 cpio xz flock sha256sum; do
	command -v "$tool" >/dev/null || die "$tool is missing; install it and try again"
done
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
guest=$cache/$(cat "$here/guest.sh" "$here/init" | sha256sum | cut -c 1-16)
exec 9>"$cache/lock"
flock 9
if [ -e "$guest/packages" ]; then echo "$guest"; exit; fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"

kernel=$(kernel_package)
if [ -z "$kernel" ] && [ "$(id -u)" = 0 ]; then apt-get -qq update >&2; kernel=$(kernel_package); fi
[ -n "$kernel" ] || die "apt knows no linux-image-cloud-amd64; run 'apt-get update' as root"
say "downloading $kernel and busybox-static"
download "$kernel"
download busybox-static
dpkg -x linux-image-*.deb kernel
dpkg -x busybox-static_*.deb busybox

say 'unpacking the kernel, packing the initramfs'
mkdir out
decompress_kernel kernel/boot/vmlinuz-* out/vmlinux
mkdir -p root/bin root/dev root/proc root/sys root/run root/lib/net root/lib/own root/lib/late root/www/cgi-bin root/etc/acpi/PWRF root/var/log root/var/run
install -m 755 "$(find busybox -path '*/bin/busybox' -type f)" root/bin/busybox
for applet in sh acpid cat halt httpd insmod ip mount poweroff sleep; do ln -s busybox "root/bin/$applet"; done
cp "$here/init" root/init
chmod +x root/init
# shellcheck disable=SC2086  # lists of words
{
	copy_modules root/lib/net $net_modules
	copy_modules root/lib/own $own_modules
	copy_modules root/lib/late $late_modules
}

page root/etc/acpi/PWRF/00000080 <<'EOF'
#!/bin/sh
poweroff -f
EOF
page root/www/cgi-bin/index.cgi <<'EOF'
#!/bin/sh
# What / shows.
read -r up _ </proc/uptime
printf 'Content-Type: text/plain\r\nCache-Control: no-store\r\n\r\nup for %s s\n' "$up"
[ ! -e /run/name ] || { read -r name </run/name; echo "name: $name"; }
EOF
page root/www/cgi-bin/drip <<'EOF'
#!/bin/sh
# A download that never ends: a line every 0.1 s, or every so many seconds: /cgi-bin/drip?0.5
printf 'Content-Type: text/plain\r\n\r\n'
while echo drip; do sleep "${QUERY_STRING:-0.1}"; done
EOF
page root/www/cgi-bin/flood <<'EOF'
#!/bin/sh
# A download that never ends, as fast as it goes.
printf 'Content-Type: application/octet-stream\r\n\r\n'
exec cat /dev/zero
EOF
page root/www/cgi-bin/halt <<'EOF'
#!/bin/sh
# Die: the processor stops, and the machine around it goes on, as when a unikernel exits.
printf 'Content-Type: text/plain\r\n\r\nhalting\n'
exec halt -f
EOF

(cd root && find . | LC_ALL=C sort | cpio --create --format=newc --owner=0:0 --quiet) >out/initramfs
for package in ./*.deb; do dpkg-deb -f "$package" Package Version; done >out/packages
rm -rf "$guest"
mv out "$guest"
echo "$guest"
