#!/bin/busybox sh
# Process 1 of the guest: mounts, modules, and a command channel to the driver (guest.py) on a virtio-serial port.
#
# A line from the driver is a shell command in base64; the answer is one line, "STATUS OUTPUT", OUTPUT in base64 with
# standard error in it. Nothing goes to a console: each character there costs an exit of the emulator.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt /etc
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev 2> /dev/null
/bin/busybox mount -t tmpfs tmpfs /run
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/run TPM2TOOLS_TCTI=device:/dev/tpmrm0
while read -r module; do
    insmod "$module"
done < /etc/modules.load 2> /run/insmod.errors
mount -t efivarfs efivarfs /sys/firmware/efi/efivars 2> /dev/null

# port NAME: wait for the virtio-serial port and print its device.
port() {
    while :; do
        for entry in /sys/class/virtio-ports/*; do
            if [ "$(cat "$entry/name" 2> /dev/null)" = "$1" ]; then
                echo "/dev/${entry##*/}"
                return
            fi
        done
        sleep 0.05
    done
}

if grep -qw vmkeep.agent /proc/cmdline; then
    mkdir -p /run/qemu-ga
    qemu-ga -m virtio-serial -p "$(port org.qemu.guest_agent.0)" -t /run/qemu-ga -l /run/qemu-ga.log &
fi

exec 3<> "$(port org.vmkeep.test.0)"
cd /run
echo ready >&3 # waits until the driver is there
while :; do
    while read -r line <&3; do
        echo "$line" | base64 -d > /run/command
        sh /run/command > /run/output 2>&1 3>&- < /dev/null
        echo "$? $(base64 -w 0 /run/output)" >&3
    done
    sleep 0.05 # end of file: no driver is there
done
