"""Which addresses a flush deletes, if what it found was told in time, late, or twice."""

from __future__ import annotations

import errno
import os

import pytest

from hotplug.kernel import link_steps
from hotplug.kernel import rtnetlink_abi as rt
from hotplug.kernel.links import KernelLinks
from hotplug.kernel.rtnetlink_messages import decode, encode
from hotplug.kernel.rtnetlink_request import Answer
from hotplug.network import Address, Change, Flush, Link

LINK = Link(7, "vif5.0", "", "fe:ff:ff:ff:ff:ff", 1500, False, 0)
LOCAL = "fe80::1"


def told(text, index=LINK.index):
    """An address, as the kernel tells it."""
    scope = rt.RT_SCOPE_LINK if text.startswith("fe80:") else rt.RT_SCOPE_UNIVERSE
    family = link_steps.family(text)
    prefix = 64 if family == rt.AF_INET6 else 32
    fields = {"index": index, "family": family, "prefixlen": prefix, "scope": scope}
    names = ("IFA_ADDRESS",) if family == rt.AF_INET6 else ("IFA_LOCAL", "IFA_ADDRESS")
    return message(rt.RTM_NEWADDR, encode(rt.RTM_NEWADDR, fields, [(name, text) for name in names]))


def message(kind, body):
    return rt.HEADER.pack(rt.HEADER.size + len(body), kind, 0, 1, 0) + body


def answered(*texts, prompt, whole=True):
    messages = [told(text) for text in texts]
    return Answer(link_steps.addresses_of(LINK), messages, prompt, whole)


def deleted(requests):
    assert {request.kind for request in requests} <= {rt.RTM_DELADDR}
    messages = [decode(message(request.kind, request.body)) for request in requests]
    assert {m["index"] for m in messages} <= {LINK.index}
    return [m.get_attr("IFA_LOCAL") or m.get_attr("IFA_ADDRESS") for m in messages]


def deletions(answer, again=(), steps=()):
    return deleted(link_steps.deletions(LINK, answer, again, steps))


def test_all_that_was_told_before_the_steps():
    texts = ["10.0.0.1", LOCAL, "2001:db8::1"]
    assert deletions(answered(*texts, prompt=3)) == texts
    assert deletions(answered(prompt=0)) == []


@pytest.mark.parametrize("prompt", [0, 1])
def test_what_is_told_after_them_may_be_the_kernels_own(prompt):
    texts = ["10.0.0.1", LOCAL, "2001:db8::1"]
    assert deletions(answered(*texts, prompt=prompt)) == ["10.0.0.1", "2001:db8::1"]
    again = [told(text) for text in texts]
    assert deletions(answered(prompt=0), again) == ["10.0.0.1", "2001:db8::1"]


def test_what_a_step_adds_is_kept():
    steps = (Flush(), Address("10.0.0.1", 32), Address("10.0.0.2", 24), Change(up=True))
    assert deletions(answered("10.0.0.1", "10.0.0.2", prompt=2), (), steps) == ["10.0.0.2"]


def test_other_links_are_left_alone():
    assert deletions(answered(prompt=0), [told("10.0.0.1", 8)]) == []


class Channel:
    """What the kernel is asked, after the steps themselves."""

    def __init__(self, first, again, refusal=0):
        self.first, self.again, self.refusal = first, again, refusal
        self.sent = []

    def exchange_all(self, requests):
        if requests and requests[0].is_dump:
            return [self.first, *map(Answer, requests[1:])]
        self.sent += requests
        error = OSError(self.refusal, os.strerror(self.refusal)) if self.refusal else None
        return [Answer(request, error=error) for request in requests]

    def dump_raw(self, kind, body):
        assert (kind, body) == (self.first.request.kind, self.first.request.body)
        return self.again


def flushed(channel):
    links = KernelLinks()
    links._channel = channel
    return links.apply(LINK, (Flush(), Change(up=True)))


def test_an_interrupted_dump_is_asked_for_again():
    again = [told("10.0.0.2"), told(LOCAL)]
    channel = Channel(answered("10.0.0.1", prompt=1, whole=False), again)
    assert flushed(channel) == [None, None]
    assert deleted(channel.sent) == ["10.0.0.1", "10.0.0.2"]


def test_a_whole_one_is_not():
    channel = Channel(answered("10.0.0.1", prompt=1), [told("10.0.0.2")])
    assert flushed(channel) == [None, None]
    assert deleted(channel.sent) == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("number", "problem"), [(errno.EADDRNOTAVAIL, None), (errno.ENOMEM, errno.ENOMEM)]
)
def test_an_address_that_cannot_be_deleted(number, problem):
    """A secondary one is gone with its primary."""
    (error, changed) = flushed(Channel(answered("10.0.0.1", prompt=1), [], number))
    assert (error and (error.errno, error.filename)) == (problem and (problem, "vif5.0"))
    assert changed is None
