# The virtual machine in which the overlay is tested on a kernel that has WireGuard: Debian's, emulated, so that any machine
# can boot it. Its root is an image like the others (infra/images/vm), packed into an initramfs; both are made again when a
# new image was.
# shellcheck shell=bash

VM=$STATE/vm
VM_TOOLS=(qemu-system-x86_64:qemu-system-x86)

vm_tools_install() {
  local missing
  mapfile -t missing < <(packages_missing "${VM_TOOLS[@]}" | sort -u)
  packages_ensure "${missing[@]}"
}

# Makes $VM/vmlinuz and $VM/root.cpio. The tests append what runs in it.
vm_make() {
  local id
  vm_tools_install
  images_build vm
  id=$(docker image inspect --format '{{.Id}}' "kontena/vm:$PROJECT")
  if [[ $(cat "$VM/image" 2>/dev/null) == "$id" ]]; then
    say "the machine is made of that image already"
    return
  fi
  rm -rf "$VM" && mkdir -p "$VM"
  docker run --rm --network none "$id" /usr/local/lib/vm/pack >"$VM/root.cpio"
  docker run --rm --network none "$id" cat /boot/vmlinuz >"$VM/vmlinuz"
  # Last: what is not whole is made again.
  say "$id" >"$VM/image"
}
