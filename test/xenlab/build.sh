#!/bin/sh
# Build the Xen lab's files: a hypervisor, a dom0 on a disk, and a guest.
#
#   build.sh [CACHE]        CACHE is ${XDG_CACHE_HOME:-~/.cache}/jitsu/xenlab if not given
#
# Prints, as its last line, the directory with `xen`, `vmlinuz` and `initramfs` (dom0's), `dom0.ext4` and `id` (the ssh
# key that dom0 knows). Packages are downloaded with apt and unpacked with dpkg; nothing is installed or configured. Root
# is needed for the owners of dom0's files. The cache's key is this script, what it puts into dom0 and the guest, and the
# versions of all packages. Two runs at once do no harm: one builds, the other waits.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/jitsu/xenlab}

# What apt would install on an empty machine. Its patterns are for the one Xen that a release of Debian has. Perl's Xen tools, man pages and the like stay unused on the disk.
packages='base-files base-passwd bash coreutils dash findutils grep gzip hostname libc-bin mawk mount sed tar util-linux
	^xen-utils-[0-9.]+$ ^xen-hypervisor-[0-9.]+-amd64$ xen-utils-common xenstore-utils iproute2 bridge-utils busybox-static kmod udev procps python3
	libvirt-daemon libvirt-daemon-driver-xen libvirt-clients dropbear-bin'
dom0_modules='virtio_pci virtio_blk virtio_net ext4 xen-netback xen-blkback xen-gntdev xen-evtchn xen-gntalloc
	xen-privcmd xenfs bridge tun loop'

say() { echo "xenlab: $*" >&2; }
die() { say "$@"; exit 1; }

apt() { # apt COMMAND...: as on a machine with nothing installed
	apt-get -qq -o Dir::State::status=/dev/null -o APT::Install-Recommends=false -o APT::Sandbox::User=root "$@"
}

kernel_package() { # kernel_package NAME: the package that NAME stands for today
	apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1
}

wanted() { # what is to be unpacked, with versions, one a line
	for package in "$kernel" "$guest_kernel"; do
		apt-cache show --no-all-versions "$package" | sed -n "s/^Version: /$package /p"
	done
	# shellcheck disable=SC2086  # a list of words
	apt --simulate install $packages | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\).*/\1 \2/p'
}

files_of() { # files_of VERSION MODULE...: the modules and those that they need, in the order of loading
	version=$1; shift
	for module; do modprobe -d "$PWD/kernels" -S "$version" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
	done | awk '!seen[$0]++'
}

pack() { # pack DIRECTORY: an initramfs of it
	(cd "$1" && find . | LC_ALL=C sort | cpio --create --format=newc --owner=0:0 --quiet) | gzip -1
}

[ "$(id -u)" = 0 ] || die "only root can build it"
for tool in apt-get dpkg-deb cpio depmod modprobe mkfs.ext4 ssh-keygen flock sha256sum chroot gcc; do
	command -v "$tool" >/dev/null || die "$tool is missing; install it and try again"
done
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
exec 9>"$cache/lock"
flock 9

kernel=$(kernel_package linux-image-amd64)
if [ -z "$kernel" ]; then apt-get -qq update >&2; kernel=$(kernel_package linux-image-amd64); fi
guest_kernel=$(kernel_package linux-image-cloud-amd64)
[ -n "$kernel" ] && [ -n "$guest_kernel" ] || die "apt knows no linux-image-amd64; run 'apt-get update'"
versions=$(wanted)
[ "$(echo "$versions" | wc -l)" -gt 50 ] || die "apt does not know Debian's Xen packages"
lab=$cache/$({ cat "$here/build.sh" "$here/dom0-rc" "$here/guest-init" "$here/take-syn.c"; echo "$versions"; } | sha256sum | cut -c 1-16)
if [ -e "$lab/packages" ]; then echo "$lab"; exit; fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"

say "downloading Xen, two kernels and a Debian for dom0, 150 MB or so"
mkdir debs kernels root out
(cd debs && apt download $(echo "$versions" | cut -d ' ' -f 1) >&2) || die "cannot download"

say "unpacking"
mkdir -p root/usr/bin root/usr/sbin root/usr/lib root/usr/lib64
for directory in bin sbin lib lib64; do ln -s "usr/$directory" "root/$directory"; done
mkdir -p kernels/usr/lib
ln -s usr/lib kernels/lib
for deb in debs/*.deb; do
	case $deb in
	*/linux-image-* | */xen-hypervisor-*) dpkg-deb --fsys-tarfile "$deb" | tar -x -C kernels --keep-directory-symlink ;;
	*) dpkg-deb --fsys-tarfile "$deb" | tar -x -C root --keep-directory-symlink \
		--exclude='./usr/share/man/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/locale/*' ;;
	esac
done
version=${kernel#linux-image-} guest_version=${guest_kernel#linux-image-}
depmod -b kernels "$version"
depmod -b kernels "$guest_version"

say "dom0"
cd root
rm -rf var/run && ln -s /run var/run
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
echo /bin/bash >etc/shells                # dropbear lets in only who has one of them
ln -sf mawk usr/bin/awk
echo xenlab >etc/hostname
chroot . /sbin/ldconfig
chroot . python3 -m compileall -q -x '/(test|idlelib|lib2to3|tkinter)/' usr/lib/python3.* >/dev/null || die "dom0's Python does not run here"
mkdir -p "lib/modules/$version/k" lab/guest lab/run proc sys dev run tmp etc/dropbear root/.ssh var/lib/xen var/log/xen/console
# shellcheck disable=SC2046,SC2086
(cd .. && cp $(files_of "$version" $dom0_modules) "root/lib/modules/$version/k/")
cp ../kernels/lib/modules/"$version"/modules.order ../kernels/lib/modules/"$version"/modules.builtin* "lib/modules/$version/"
cd ..
depmod -b root "$version" 2>/dev/null
ssh-keygen -q -t ed25519 -N '' -C xenlab -f out/id
install -m 600 out/id.pub root/root/.ssh/authorized_keys
chmod 700 root/root root/root/.ssh
install -m 755 "$here/dom0-rc" root/lab/rc
ln -s /bin/busybox root/lab/init
printf '::sysinit:/lab/rc\n' >root/etc/inittab
# libvirt: its Xen driver only. Xen hides SEP from guests on AMD, and libvirt would miss it.
(cd root/usr/lib/x86_64-linux-gnu/libvirt/connection-driver && ls | grep -v libxl | xargs rm -f)
sed -i "/name='sep'/d" root/usr/share/libvirt/cpu_map/x86_qemu64.xml

say "guest"
mkdir -p guest/bin guest/sbin guest/dev guest/proc guest/sys guest/lib/m guest/lib/x86_64-linux-gnu guest/lib64 guest/www
cp root/bin/busybox guest/bin/
number=10
for file in $(files_of "$guest_version" xen-netfront xen-blkfront); do
	cp "$file" "guest/lib/m/$number-${file##*/}"; number=$((number + 1))
done
for word in read write ls list rm; do cp -L "root/usr/bin/xenstore-$word" guest/bin/; done
gcc -static -Os -s -o guest/bin/take-syn "$here/take-syn.c"
for library in libxenstore.so.4 libxentoolcore.so.1 libc.so.6; do
	cp -L "root/usr/lib/x86_64-linux-gnu/$library" guest/lib/x86_64-linux-gnu/
done
cp -L root/lib64/ld-linux-x86-64.so.2 guest/lib64/
install -m 755 "$here/guest-init" guest/init
pack guest >root/lab/guest/initramfs
cp "kernels/boot/vmlinuz-$guest_version" root/lab/guest/vmlinuz

say "disk"
mkdir -p initramfs/bin initramfs/dev initramfs/proc initramfs/m initramfs/new
cp root/bin/busybox initramfs/bin/
number=10
for file in $(files_of "$version" virtio_pci virtio_blk ext4 crc32c_generic crc32c-intel); do
	cp "$file" "initramfs/m/$number-${file##*/}"; number=$((number + 1))
done
cat >initramfs/init <<'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in /m/*; do /bin/busybox insmod "$module" 2>/dev/null; done
/bin/busybox mount -t ext4 -o rw /dev/vda /new || exec /bin/busybox poweroff -f
/bin/busybox mount --move /dev /new/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /new /lab/init
END
chmod 755 initramfs/init
pack initramfs >out/initramfs
cp "kernels/boot/vmlinuz-$version" out/vmlinuz
gunzip -c kernels/boot/xen-*-amd64.gz >out/xen
truncate -s 1500M out/dom0.ext4
mkfs.ext4 -q -O ^has_journal -d root out/dom0.ext4
echo "$versions" >out/packages
rm -rf "$lab"
mv out "$lab"
echo "$lab"
