"""Prints the messages of a JSON list, encoded by pyroute2: the payload of each, in hexadecimal, on a line of its own.

The order of attributes is the one in which a request is made here. Their flags' bits are those of linux/wireguard.h:
pyroute2 0.7 has constants of these names that count the bits instead (WGPEER_F_REMOVE_ME = 0).
"""

import base64
import json
import socket
import sys

from pyroute2.netlink import NLA_F_NESTED
from pyroute2.netlink.generic import wireguard

HEADER_BYTES = 16  # struct nlmsghdr
PEER_FLAGS = {"remove_me": 1 << 0, "replace_allowedips": 1 << 1, "update_only": 1 << 2}
COMMANDS = {"get": wireguard.WG_CMD_GET_DEVICE, "set": wireguard.WG_CMD_SET_DEVICE}

# The items of a list have the type 0 by linux/wireguard.h, as the tool wg and the kernel send them. pyroute2 counts
# them from 1, which the kernel ignores.
peer_class = wireguard.wgmsg.wgdevice_peer
peer_class.header_type = NLA_F_NESTED
peer_class.wgpeer_allowedip.header_type = NLA_F_NESTED


def key(text):
    return base64.b64encode(bytes.fromhex(text))


def allowed(network):
    address, prefix = network.split("/")
    return {"attrs": [
        ["WGALLOWEDIP_A_FAMILY", socket.AF_INET],
        ["WGALLOWEDIP_A_IPADDR", socket.inet_pton(socket.AF_INET, address)],
        ["WGALLOWEDIP_A_CIDR_MASK", int(prefix)],
    ]}


def peer(case):
    attrs = [["WGPEER_A_PUBLIC_KEY", key(case["public_key"])]]
    if case["flags"]:
        attrs.append(["WGPEER_A_FLAGS", sum(PEER_FLAGS[name] for name in case["flags"])])
    if "endpoint" in case:
        address, port = case["endpoint"].split(":")
        attrs.append(["WGPEER_A_ENDPOINT", {"addr": address, "port": int(port)}])
    if "keepalive_s" in case:
        attrs.append(["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", case["keepalive_s"]])
    if case["allowed"]:
        attrs.append(["WGPEER_A_ALLOWEDIPS", [allowed(network) for network in case["allowed"]]])
    return {"attrs": attrs}


def message(case):
    made = wireguard.wgmsg()
    made["cmd"] = COMMANDS[case["command"]]
    made["version"] = wireguard.WG_GENL_VERSION
    made["attrs"].append(["WGDEVICE_A_IFNAME", case["name"]])
    if "private_key" in case:
        made["attrs"].append(["WGDEVICE_A_PRIVATE_KEY", key(case["private_key"])])
    if "listen_port" in case:
        made["attrs"].append(["WGDEVICE_A_LISTEN_PORT", case["listen_port"]])
    if case["peers"]:
        made["attrs"].append(["WGDEVICE_A_PEERS", [peer(each) for each in case["peers"]]])
    made.encode()
    return made.data[HEADER_BYTES:].hex()


for each in json.load(sys.stdin):
    print(message(each))
