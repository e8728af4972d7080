//! The contract of content stores, over gRPC.

use crate::common::Node;
use crate::common::remote::Remote;
use orlop_content::suite::Fixture;

async fn fixture() -> Fixture {
    let node = Node::new();
    Fixture::keeping(Remote::new(node.channel.clone()), node)
}

// All of it but a_reader_survives_deletion: on the wire every read opens the blob.
orlop_content::content_suite! { @cases fixture,
    a_commit_makes_the_bytes_readable
    an_empty_blob_can_be_written
    ranges_stop_at_the_end_of_the_blob
    what_is_not_there_is_not_found
    a_write_is_resumed_where_it_stopped
    any_split_into_writes_gives_the_same_blob
    a_second_writer_of_a_ref_is_locked_out
    dropping_a_writer_frees_the_ref
    an_expected_blob_that_exists_is_not_written_again
    a_wrong_size_keeps_the_ingest
    a_wrong_digest_keeps_the_ingest
    what_the_writer_was_opened_with_is_checked_too
    options_given_later_win
    the_second_commit_of_a_digest_learns_that_it_exists
    many_writers_of_one_digest_leave_one_blob
    truncating_to_zero_starts_again
    truncating_to_the_middle_hashes_what_stays
    truncating_to_more_is_refused
    an_abort_fails_the_open_writer
    an_aborted_writer_cannot_disturb_its_successor
    statuses_name_every_write
    stale_writes_are_aborted
    the_other_algorithms_work
    a_commit_may_name_another_algorithm
    list_and_delete
    pieces_that_are_held_keep_their_bytes
    a_deleted_blob_can_be_written_again
    any_text_but_none_is_a_ref
    a_committed_writer_is_finished
    threads_that_block_read_and_write
}
