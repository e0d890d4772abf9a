"""Every line of the checklist has its test.

The names and numbers are those of the contract's section 6.
"""

from __future__ import annotations

import ast
from pathlib import Path

LINES = """
1 command_is_first_argument_without_equals
2 block_unknown_action
3 vif_unknown_action
4 missing_xenbus_path
5 relative_xenbus_path_verbatim
6 absolute_xenbus_path_accepted
7 exit_codes
8 silent_stdout
9 cwd_independent
10 stderr_appended_to_log
11 log_unwritable_not_fatal
12 syslog_err_on_failure
13 child_environment
14 type_if_defaults_to_vif
15 vif_add_remove_nop
16 tap_online_offline_nop
17 unknown_type_if
18 arguments_never_evaluated
19 parameter_precedence
20 sigkill_recoverable
21 bounded_run_time
22 vif_setup_dispatch
23 vif_setup_keeps_argument_boundaries
24 udev_call_suppressed_by_key
25 phy_key_order
26 phy_device_number_format
27 phy_plain_path_verbatim
28 phy_symlink_resolved
29 phy_success
30 phy_add_twice_nop
31 phy_add_resumes_partial
32 phy_missing_target
33 phy_unsupported_target
34 phy_relative_name
35 phy_blank_in_path
36 phy_odd_bytes_in_path
37 phy_glob_literal
38 phy_state_checked
39 missing_params
40 missing_mode
41 missing_frontend_id
42 missing_key_named
43 deleted_backend_not_resurrected
44 success_clears_hotplug_error
45 file_keys
46 file_read_only_loop
47 file_symlink_resolved
48 file_state_must_be_2
49 file_readonly_busy
50 file_bang_skips_readonly_check
51 file_no_free_loop
52 file_attach_race_retried
53 file_attach_failure_clean
54 file_store_failure_clean
55 file_swap_detected
56 file_blank_in_path
57 file_add_twice_nop
58 remove_phy_nop
59 remove_file_detaches
60 remove_backing_deleted
61 remove_backing_replaced
62 remove_twice_safe
63 remove_after_failed_add
64 remove_backend_gone
65 remove_deferred_detach_ok
66 share_r_r
67 share_r_w
68 share_w_any
69 share_bang
70 share_mode_spellings
71 share_local_ro_mount
72 share_local_rw_mount
73 share_local_reported_first
74 share_same_vm_value
75 share_me_stubdom_of_holder
76 share_holder_stubdom_of_me
77 share_two_stubdoms_one_target
78 share_two_stubdoms_two_targets
79 share_holder_vm_missing
80 share_my_vm_missing
81 share_busy_result
82 share_own_second_vdev
83 share_whole_entry_match
84 share_file_with_current_losetup
85 share_file_loop_with_offset
86 share_reader_vs_bang_holder
87 share_suffix_symmetric
88 share_driver_domain
89 share_enumeration_error
90 share_atomic
91 share_scan_cost
92 lock_interoperates
93 lock_file_removed
94 lock_not_inherited
95 lock_wait_bounded
96 bridge_online_sequence
97 bridge_tap_add
98 bridge_offline
99 bridge_missing_online
100 bridge_missing_offline
101 bridge_legacy_name
102 bridge_autodetect
103 bridge_already_member
104 vifname_rename
105 vifname_tap_suffix
106 vifname_conflict
107 vifname_repeatable
108 vifname_mtu_path
109 mtu_source
110 mtu_not_advertised_on_failure
111 enslave_failure_text
112 firewall_accepts
113 firewall_cleanup
114 firewall_unusable
115 hooks_order
116 hook_failure_text
117 driver_domain_tap
118 route_metrics
119 route_offline_best_effort
120 nat_addresses
121 nat_already_up
122 ovs_bridge_spec
123 ovs_name_inert
124 dummy_and_iscsi_params
125 tap_vbd3_keys
126 nonzero_exit_has_text
127 connected_implies_device
"""


def docstring_numbers():
    """Every test function of this folder, by name: the number its docstring begins with."""
    found = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = (ast.get_docstring(node) or "").partition(":")[0]
    return found


def test_every_line_has_its_test():
    wanted = {f"test_{name}": number for number, name in map(str.split, LINES.split("\n")[1:-1])}
    found = docstring_numbers()
    assert {name: found.get(name) for name in wanted} == wanted
    assert len(wanted) == 127
