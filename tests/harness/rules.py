"""What is in our tables of the packet filter, by nft itself."""

from __future__ import annotations

import json


def guarded(net):
    """The links that are guarded in a namespace."""
    ruleset = json.loads(net.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    maps = [item["map"] for item in ruleset if "map" in item]
    return {element[0] for found in maps for element in found.get("elem", ())}
