"""What became of each of PyTorch's tests of rendezvous (test/distributed/elastic/rendezvous, as of torch 2.13).

Each stands under its file and class, without `test_`, beside what it became: ours, as `test` or `test[case]`, several
parted by commas, or the reason for having none, in brackets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DECIDED = "test_what_is_decided"
CONTRACT = "test_the_round_is_replaced_only_by_whoever_knows_it"
HOLDS = "test_what_is_asked_for_is_what_holds"
REFUSED = "test_what_cannot_be_meant_is_refused_in_a_sentence"

MIRROR = "(no state is fetched, cached or marked dirty: every node watches the round)"
LEASE = "(no heartbeat is written: a lease is kept, and etcd ends it)"
EVENTS = "(torch's event log is torch's own; trouble is logged, and told as one error)"
TORCH = "(of a part of torch that Instep does not replace)"
C10D = "(of the store that c10d's endpoint is; ours is none)"
DELAY = "(nobody delays or polls: etcd tells who waits)"

BECAME: Final[Mapping[str, Mapping[str, str]]] = {
    "rendezvous_backend_test RendezvousBackendTestMixin": {
        "get_state_returns_backend_state": "test_a_node_knows_the_round_that_is_there",
        "get_state_returns_none_if_backend_state_does_not_exist": "test_a_node_knows_no_round_where_there_is_none",
        "get_state_raises_error_if_backend_state_is_corrupt": (
            "test_a_round_that_cannot_be_read_is_refused_in_a_sentence_and_left_alone"
        ),
        "set_state_sets_backend_state_if_it_does_not_exist": f"{CONTRACT}[the first round needs none before it]",
        "set_state_sets_backend_state_if_token_is_current": (
            f"{CONTRACT}[whoever knows the round as it is replaces it]"
        ),
        "set_state_returns_current_backend_state_if_token_is_old": (
            f"{CONTRACT}[what was read before the last change replaces nothing]"
        ),
        "set_state_returns_current_backend_state_if_token_is_none": (
            f"{CONTRACT}[whoever believes that there is no round replaces none]"
        ),
        "set_state_returns_current_backend_state_if_token_is_invalid": (
            f"{CONTRACT}[a term that is over replaces nothing, whatever is known], "
            f"{CONTRACT}[a term that is over begins nothing]"
        ),
    },
    "etcd_rendezvous_backend_test CreateBackendTest": {
        "create_backend_returns_backend": f"{HOLDS}[times of one's own]",
        "create_backend_returns_backend_if_protocol_is_not_specified": f"{HOLDS}[nothing but the endpoint]",
        "create_backend_returns_backend_if_read_timeout_is_not_specified": f"{HOLDS}[nothing but the endpoint]",
        "create_backend_raises_error_if_etcd_is_unreachable": "test_where_there_is_no_etcd_joining_says_so",
        "create_backend_raises_error_if_protocol_is_invalid": (
            f"{REFUSED}[the protocol of etcd-v2], {REFUSED}[an endpoint that is none]"
        ),
        "create_backend_raises_error_if_read_timeout_is_invalid": (
            f"{REFUSED}[read_timeout=0], {REFUSED}[read_timeout=-10]"
        ),
        "get_waits_for_store_prefix_key": "(of a store kept in etcd; ours is a TCPStore, whose get waits by itself)",
    },
    "etcd_rendezvous_test EtcdRendezvousTest": {
        "etcd_rdzv_basic_params": "test_a_handler_says_what_it_is_before_it_asks_anybody",
        "etcd_rdzv_additional_params": (
            f"{HOLDS}[what torchrun always adds], test_a_handler_says_what_it_is_before_it_asks_anybody"
        ),
        "get_backend": "test_a_handler_says_what_it_is_before_it_asks_anybody",
    },
    "c10d_rendezvous_backend_test CreateBackendTest": {
        "create_backend_returns_backend": f"{HOLDS}[times of one's own]",
        "create_backend_returns_backend_if_is_host_is_false": C10D,
        "create_backend_returns_backend_if_is_host_is_not_specified": C10D,
        "create_backend_returns_backend_if_is_host_is_not_specified_and_store_already_exists": C10D,
        "create_backend_returns_backend_if_endpoint_port_is_not_specified": (
            "(etcd3 demands the port of each endpoint: a wrong guess would be another cluster)"
        ),
        "create_backend_returns_backend_if_endpoint_file_is_not_specified": C10D,
        "create_backend_returns_backend_if_store_type_is_not_specified": C10D,
        "create_backend_returns_backend_if_read_timeout_is_not_specified": f"{HOLDS}[nothing but the endpoint]",
        "create_backend_raises_error_if_store_is_unreachable": "test_where_there_is_no_etcd_joining_says_so",
        "create_backend_raises_error_if_endpoint_is_invalid": f"{REFUSED}[an endpoint that is none]",
        "create_backend_raises_error_if_store_type_is_invalid": f"{REFUSED}[the store of c10d]",
        "create_backend_raises_error_if_read_timeout_is_invalid": (
            f"{REFUSED}[read_timeout=0], {REFUSED}[read_timeout=-10]"
        ),
        "create_backend_raises_error_if_tempfile_creation_fails": C10D,
        "create_backend_raises_error_if_file_path_is_invalid": C10D,
        "create_backend_closes_mkstemp_fd": C10D,
    },
    "out_of_tree_rendezvous_test OutOfTreeRendezvousTest": {
        "out_of_tree_handler_loading": "test_torch_finds_the_backend_by_the_entry_point_that_the_project_declares",
    },
    "api_test RendezvousParametersTest": {
        "init_initializes_params": f"{HOLDS}[nothing but the endpoint]",
        "init_initializes_params_if_min_nodes_equals_to_1": f"{HOLDS}[one at least]",
        "init_initializes_params_if_min_and_max_nodes_are_equal": f"{HOLDS}[as many at least as at most]",
        "init_raises_error_if_backend_is_none_or_empty": TORCH,
        "init_raises_error_if_min_nodes_is_less_than_1": (
            f"{REFUSED}[none at least], {REFUSED}[less than none at least]"
        ),
        "init_raises_error_if_max_nodes_is_less_than_min_nodes": f"{REFUSED}[less at most than at least]",
        "get_returns_none_if_key_does_not_exist": TORCH,
        "get_returns_default_if_key_does_not_exist": f"{HOLDS}[nothing but the endpoint]",
        "get_as_bool_returns_none_if_key_does_not_exist": "(no option of etcd3 is a yes or a no)",
        "get_as_bool_returns_default_if_key_does_not_exist": "(no option of etcd3 is a yes or a no)",
        "get_as_bool_returns_true_if_value_represents_true": "(no option of etcd3 is a yes or a no)",
        "get_as_bool_returns_false_if_value_represents_false": "(no option of etcd3 is a yes or a no)",
        "get_as_bool_raises_error_if_value_is_invalid": "(no option of etcd3 is a yes or a no)",
        "get_as_int_returns_none_if_key_does_not_exist": TORCH,
        "get_as_int_returns_default_if_key_does_not_exist": f"{HOLDS}[nothing but the endpoint]",
        "get_as_int_returns_integer_if_value_represents_integer": (
            f"{HOLDS}[keep-alive of one's own], {HOLDS}[numbers with spaces around them]"
        ),
        "get_as_int_raises_error_if_value_is_invalid": (
            f"{REFUSED}[keep_alive_max_attempt=a], {REFUSED}[keep_alive_max_attempt=0a], "
            f"{REFUSED}[keep_alive_max_attempt=3b], {REFUSED}[keep_alive_max_attempt=abc]"
        ),
    },
    "api_test RendezvousHandlerRegistryTest": {
        "register_registers_once_if_called_twice_with_same_creator": (
            "test_torch_finds_the_backend_by_the_entry_point_that_the_project_declares"
        ),
        "register_raises_error_if_called_twice_with_different_creators": TORCH,
        "create_handler_returns_handler": "test_torch_finds_the_backend_by_the_entry_point_that_the_project_declares",
        "create_handler_raises_error_if_backend_is_not_registered": (
            "test_torch_finds_the_backend_by_the_entry_point_that_the_project_declares"
        ),
        "create_handler_raises_error_if_backend_names_do_not_match": (
            "test_torch_finds_the_backend_by_the_entry_point_that_the_project_declares"
        ),
    },
    "dynamic_rendezvous_test RendezvousTimeoutTest": {
        "init_initializes_timeout": f"{HOLDS}[times of one's own]",
        "init_initializes_timeout_if_no_timeout_is_specified": f"{HOLDS}[nothing but the endpoint]",
        "init_raises_error_if_timeout_is_not_positive": f"{REFUSED}[join_timeout=0], {REFUSED}[join_timeout=-1]",
    },
    "dynamic_rendezvous_test NodeDescTest": {
        "repr": "(a node's name is random, and means nothing)",
        "hash": "(a node's name is random, and means nothing)",
    },
    "dynamic_rendezvous_test NodeDescGeneratorTest": {
        "generate": "test_all_nodes_get_a_rank_of_their_own_and_one_store",
    },
    "dynamic_rendezvous_test RendezvousStateTest": {
        "encoded_size_is_within_expected_limit": "test_a_round_of_many_nodes_stays_small",
    },
    "dynamic_rendezvous_test BackendRendezvousStateHolderTest": {
        "init_initializes_state_holder": "test_a_handler_says_what_it_is_before_it_asks_anybody",
        "sync_gets_empty_state_if_backend_state_does_not_exist": "test_a_node_knows_no_round_where_there_is_none",
        "sync_gets_backend_state_if_local_state_is_clean": "test_a_node_knows_the_round_that_is_there",
        "sync_gets_backend_state_if_local_state_is_old_and_dirty": (
            f"{CONTRACT}[what was read before the last change replaces nothing]"
        ),
        "sync_sets_backend_state_if_local_state_is_new_and_dirty": (
            f"{CONTRACT}[whoever knows the round as it is replaces it]"
        ),
        "sync_uses_cached_state_if_cache_duration_is_specified": MIRROR,
        "sync_gets_backend_state_if_cached_state_has_expired": MIRROR,
        "sync_sanitizes_state": (
            f"{DECIDED}[the dead are not waited for], "
            f"{DECIDED}[a dead newcomer is no newcomer], "
            f"{DECIDED}[nodes that trouble with etcd may have hidden count as alive], "
            f"{DECIDED}[nodes that are known to have gone do not, whatever the trouble]"
        ),
        "sync_sanitizes_state_if_no_participants_is_left": (
            f"{DECIDED}[after all have died the round is nobody's], "
            f"{DECIDED}[after all have died the next to come form the next round]"
        ),
        "sync_raises_error_if_backend_state_is_corrupt": (
            "test_a_round_that_cannot_be_read_is_refused_in_a_sentence_and_left_alone"
        ),
    },
    "dynamic_rendezvous_test DistributedRendezvousOpExecutorTest": {
        "run_passes_expected_context_and_deadline_to_state_handler": MIRROR,
        "run_keeps_alive": LEASE,
        "run_adds_to_participants": f"{DECIDED}[the first of two waits]",
        "run_adds_to_participants_if_node_was_in_waitlist": f"{DECIDED}[who waited for the last round is in the next]",
        "run_adds_to_participants_and_starts_last_call_if_min_nodes_is_reached": (
            f"{DECIDED}[the last call begins when 1 make the least number], "
            f"{DECIDED}[the last call begins when 2 make the least number], "
            f"{DECIDED}[the last call begins when 3 make the least number]"
        ),
        "run_adds_to_participants_and_completes_rendezvous_if_max_nodes_is_reached": (
            f"{DECIDED}[1 of at least 1 are complete at once when that is the most], "
            f"{DECIDED}[2 of at least 1 are complete at once when that is the most], "
            f"{DECIDED}[2 of at least 2 are complete at once when that is the most], "
            f"{DECIDED}[3 of at least 1 are complete at once when that is the most], "
            f"{DECIDED}[3 of at least 3 are complete at once when that is the most], "
            f"{DECIDED}[ranks are given in the order of coming, whatever the names], "
            "test_the_most_need_no_last_call"
        ),
        "run_adds_to_waitlist": f"{DECIDED}[a newcomer for whom there is room makes the round wanted]",
        "run_removes_from_participants": (
            f"{DECIDED}[a node that leaves its round to join again makes the others join too], "
            f"{DECIDED}[a node that gave up before the round was complete is not waited for]"
        ),
        "run_removes_from_participants_and_moves_to_next_round_if_node_is_last_participant": (
            f"{DECIDED}[the last of a round to leave it begins the next]"
        ),
        "run_removes_from_participants_and_clears_last_call_if_rendezvous_has_less_than_min_nodes": (
            f"{DECIDED}[the last call is off once too few are left], "
            f"{DECIDED}[a last call that is over helps nobody below the least number]"
        ),
        "run_removes_from_waitlist": f"{DECIDED}[a newcomer that goes away again makes nobody stop]",
        "run_marks_rendezvous_closed": "test_closing_is_heard_of_by_all_and_may_be_repeated",
        "run_raises_error_if_rendezvous_is_closed": "test_closing_is_heard_of_by_all_and_may_be_repeated",
        "run_raises_error_if_operation_timed_out": (
            "test_who_does_not_get_the_others_in_time_is_told_so_and_leaves_nothing"
        ),
        "run_delays_execution_if_sync_requested": DELAY,
    },
    "dynamic_rendezvous_test TestRendezvousExitOp": {
        "removes_from_participants_if_node_is_participant": (
            f"{DECIDED}[a node that leaves its round to join again makes the others join too]"
        ),
        "raises_timeout_if_deadline_exceeded": (
            "test_who_does_not_get_the_others_in_time_is_told_so_and_leaves_nothing"
        ),
        "finishes_if_node_is_not_participant": f"{DECIDED}[the first of two waits]",
    },
    "dynamic_rendezvous_test TestRendezvousJoinOp": {
        "raises_closed_if_rendezvous_is_closed": (
            f"{DECIDED}[nothing is formed of a run that is closed], "
            f"{DECIDED}[newcomers do not change that], "
            "test_who_waits_while_the_run_is_closed_is_told_so"
        ),
        "finishes_if_rendezvous_is_complete_and_node_is_participant": (
            f"{DECIDED}[a complete round stands], "
            f"{DECIDED}[a node that has not yet noticed its round is in it all the same]"
        ),
        "treat_as_redundancy_for_next_rendezvous_if_rendezvous_is_complete": (
            f"{DECIDED}[a node too many is passed over], "
            f"{DECIDED}[of too many at once those who came last are passed over]"
        ),
        "waits_next_round_if_rendezvous_is_complete_and_node_is_redundant": (
            f"{DECIDED}[a node too many is passed over]"
        ),
        "remove_from_rednundancy_list": f"{DECIDED}[a node too many is let in once a place is free]",
        "waits_next_round_if_rendezvous_is_complete_and_node_is_in_wait_list": (
            f"{DECIDED}[a round is wanted once, however long the newcomer waits]"
        ),
        "adds_to_wait_list_if_rendezvous_is_complete_and_num_nodes_is_less_than_max_nodes": (
            f"{DECIDED}[a newcomer for whom there is room makes the round wanted]"
        ),
        "waits_rendezvous_to_complete_if_node_is_participant": (
            f"{DECIDED}[during the last call nothing happens but more may come]"
        ),
        "marks_rendezvous_complete_if_node_is_participant_and_last_call_deadline_exceeded": (
            f"{DECIDED}[once the last call is over the least number is enough], "
            "test_the_least_number_is_enough_once_the_last_call_is_over"
        ),
        "adds_to_participants": f"{DECIDED}[the first of two waits]",
        "raises_timeout_if_deadline_exceeded": (
            "test_who_does_not_get_the_others_in_time_is_told_so_and_leaves_nothing"
        ),
        "raises_timeout_if_rollback_deadline_exceeded_and_node_is_participant": (
            "test_who_does_not_get_the_others_in_time_is_told_so_and_leaves_nothing"
        ),
        "raises_timeout_if_rollback_deadline_exceeded_and_node_is_in_wait_list": (
            "test_a_newcomer_whom_nobody_lets_in_is_told_so_and_leaves_nothing"
        ),
        "removes_from_participants_if_timed_out_but_rollback_deadline_is_not_reached": (
            "test_who_does_not_get_the_others_in_time_is_told_so_and_leaves_nothing"
        ),
        "removes_from_wait_list_if_timed_out_but_rollback_deadline_is_not_reached": (
            "test_a_newcomer_whom_nobody_lets_in_is_told_so_and_leaves_nothing"
        ),
        "no_timeout_for_redundant_node": "test_a_node_too_many_waits_without_limit_and_disturbs_nobody",
        "keep_alive_for_redundant_node": "test_a_node_too_many_waits_without_limit_and_disturbs_nobody",
    },
    "dynamic_rendezvous_test TestRendezvousCloseOp": {
        "finishes_if_rendezvous_is_closed": "test_closing_is_heard_of_by_all_and_may_be_repeated",
        "raises_timeout_if_deadline_exceeded": ("test_without_etcd_a_round_goes_on_and_closing_says_that_it_could_not"),
        "marks_rendezvous_closed": "test_closing_is_heard_of_by_all_and_may_be_repeated",
    },
    "dynamic_rendezvous_test TestRendezvousKeepAliveOp": {
        "updates_keep_alive_if_needed": LEASE,
        "raises_timeout_if_deadlined_exceeded": LEASE,
        "finishes_if_no_keep_alive_update_is_needed": LEASE,
    },
    "dynamic_rendezvous_test DynamicRendezvousHandlerTest": {
        "share_store_creates_tcp_store": "test_the_workers_meet_in_the_store_of_the_agents",
        "share_store_when_tcp_store": "(no store is handed to the handler: each round has one of its own)",
        "next_rendezvous_skews_the_first_join_attempt": DELAY,
        "next_rendezvous_returns_expected_value": "test_all_nodes_get_a_rank_of_their_own_and_one_store",
        "next_rendezvous_respects_the_requested_timeout": (
            "test_who_does_not_get_the_others_in_time_is_told_so_and_leaves_nothing"
        ),
        "next_rendezvous_moves_to_next_round_if_called_repeatedly": (
            "test_each_joining_leads_to_a_further_round_with_a_store_of_its_own"
        ),
        "is_closed_returns_expected_value": "test_closing_is_heard_of_by_all_and_may_be_repeated",
        "is_closed_records_and_raises_exceptions": (
            "test_without_etcd_a_round_goes_on_and_closing_says_that_it_could_not"
        ),
        "set_closed_closes_rendezvous": "test_closing_is_heard_of_by_all_and_may_be_repeated",
        "set_closed_respects_the_requested_timeout": (
            "test_without_etcd_a_round_goes_on_and_closing_says_that_it_could_not"
        ),
        "set_closed_can_be_called_multiple_times": "test_closing_is_heard_of_by_all_and_may_be_repeated",
        "set_closed_records_and_raises_exceptions": EVENTS,
        "num_nodes_waiting_returns_expected_value": (
            "test_a_newcomer_is_counted_and_joins_in_the_next_round, "
            "test_a_node_too_many_waits_without_limit_and_disturbs_nobody"
        ),
        "num_nodes_waiting_records_and_raises_exceptions": (
            "test_without_etcd_a_round_goes_on_and_closing_says_that_it_could_not"
        ),
        "shutdown_closes_rendezvous_and_returns_true": (
            "test_shutting_down_closes_and_ends_the_thread_and_may_be_repeated"
        ),
        "shutdown_returns_false_if_rendezvous_cannot_be_closed": (
            "test_without_etcd_a_round_goes_on_and_closing_says_that_it_could_not"
        ),
        "shutdown_can_be_called_multiple_times": "test_shutting_down_closes_and_ends_the_thread_and_may_be_repeated",
        "shutdown_records_and_raises_exceptions": EVENTS,
        "keep_alive_updates_last_heartbeat": LEASE,
        "keep_alive_swallows_rendezvous_errors": (
            "test_without_etcd_a_round_goes_on_and_closing_says_that_it_could_not"
        ),
        "keep_alive_respects_the_requested_timeout": LEASE,
        "keep_alive_thread_is_started_with_next_rendezvous_and_stopped_with_shutdown": (
            "test_shutting_down_closes_and_ends_the_thread_and_may_be_repeated"
        ),
        "keep_alive_thread_is_started_with_next_rendezvous_and_stopped_with_finalizer": (
            "(ended by shutdown or at the end of the process: a handler that is merely dropped is no farewell)"
        ),
    },
    "dynamic_rendezvous_test DynamicRendezvousHandlerFromBackendTest": {
        "init_initializes_handler": "test_a_handler_says_what_it_is_before_it_asks_anybody",
        "init_initializes_handler_if_timeout_is_not_specified": f"{HOLDS}[nothing but the endpoint]",
        "init_initializes_handler_if_min_and_max_nodes_are_equal": f"{HOLDS}[as many at least as at most]",
        "init_raises_error_if_min_nodes_is_not_positive": (
            f"{REFUSED}[none at least], {REFUSED}[less than none at least]"
        ),
        "init_raises_error_if_max_nodes_is_less_than_min": f"{REFUSED}[less at most than at least]",
    },
    "dynamic_rendezvous_test CreateHandlerTest": {
        "create_handler_returns_handler": f"{HOLDS}[times of one's own]",
        "create_handler_returns_handler_if_timeout_is_not_specified": f"{HOLDS}[nothing but the endpoint]",
        "create_handler_records_and_raises_exceptions": EVENTS,
        "create_handler_rdzv_local_addr": "test_the_workers_meet_in_the_store_of_the_agents",
    },
    "dynamic_rendezvous_test IntegrationTest": {
        "all_nodes_join_rendezvous": "test_all_nodes_get_a_rank_of_their_own_and_one_store",
        "redundancy_list": "test_a_node_too_many_waits_without_limit_and_disturbs_nobody",
        "redundancy_transition_to_wait_list_then_join_rendezvous": (
            "test_a_node_too_many_takes_the_place_of_one_that_is_heard_of_no_more"
        ),
        "use_agent_store_is_true_by_default": "test_the_workers_meet_in_the_store_of_the_agents",
        "use_agent_store_is_disabled": "test_the_workers_meet_elsewhere_where_that_is_asked_for",
        "share_tcp_store_from_backend": "test_the_workers_meet_in_the_store_of_the_agents",
        "share_tcp_store_is_disabled": "test_the_workers_meet_elsewhere_where_that_is_asked_for",
    },
}
