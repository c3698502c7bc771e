/* Goal: what a session keeps is what its peer may be missing, whole and in order.
 * Method: by hand, and frames of many lengths while the memory moves under them. */
#include "csrc/base/limits.h"
#include "csrc/link/session.h"
#include "tests/c/check.h"

#include <string.h>

static int passed;

static bool keep(cc__session *session, uint8_t value, size_t bytes) {
    static uint8_t frame[1 << 20];
    memset(frame, value, bytes);
    struct iovec iov[2] = {{frame, bytes / 2}, {frame + bytes / 2, bytes - bytes / 2}};
    return cc__session_keep(session, iov, 2);
}

static void what_is_not_confirmed_goes_out_again(void) {
    cc__session session = {0};
    cc__session_start(&session, 7);
    CHECK(keep(&session, 1, 100) && keep(&session, 2, 50));
    session.handed = session.end;
    CHECK(cc__session_confirm(&session, 100));
    cc__session_again(&session);
    CHECK_EQ(session.end - session.handed, 50u);
    CHECK_EQ(session.kept[session.handed], 2);
    session.handed = session.end;
    CHECK(cc__session_confirm(&session, 150));
    CHECK_EQ(session.end, 0u);
    cc__session_free(&session);
    passed++;
}

static void a_peer_cannot_have_what_was_never_sent(void) {
    cc__session session = {0};
    cc__session_start(&session, 7);
    CHECK(keep(&session, 1, 100));
    session.handed = 60;
    CHECK(!cc__session_confirm(&session, 61));
    CHECK(!cc__session_confirm(&session, UINT64_MAX));
    CHECK(cc__session_confirm(&session, 60));
    CHECK(cc__session_confirm(&session, 10)); /* an old word */
    CHECK_EQ(session.confirmed, 60u);
    cc__session_free(&session);
    passed++;
}

static void frames_stay_whole_while_the_memory_moves(void) {
    cc__session session = {0};
    cc__session_start(&session, 7);
    uint64_t sent = 0, confirmed = 0;
    for (uint32_t i = 0; i < 20000; i++) {
        size_t bytes = 64 + i % 991;
        CHECK(keep(&session, (uint8_t)i, bytes));
        CHECK_EQ(session.kept[session.end - bytes], (uint8_t)i);
        CHECK_EQ(session.kept[session.end - 1], (uint8_t)i);
        sent += bytes;
        session.handed = session.end;
        if (i % 7 == 0) {
            confirmed = sent - bytes;
            CHECK(cc__session_confirm(&session, confirmed));
            CHECK_EQ(session.kept[session.start], (uint8_t)i);
        }
    }
    CHECK(session.capacity <= 64u << 10);
    CHECK(cc__session_confirm(&session, sent));
    cc__session_free(&session);
    passed++;
}

static bool keep_frame(cc__session *session, uint32_t length) {
    static uint8_t payload[CC_EAGER_BYTES];
    uint8_t header[CC_HEADER_BYTES];
    cc__frame frame = {.type = CC__EAGER, .length = length};
    cc__frame_pack(&frame, header);
    struct iovec iov[2] = {{header, sizeof header}, {payload, length}};
    return cc__session_keep(session, iov, 2);
}

static void whole_frames_are_handed_out(void) {
    cc__session session = {0};
    cc__session_start(&session, 7);
    for (uint32_t length = 0; length <= CC_EAGER_BYTES; length += 1000)
        keep_frame(&session, length);
    size_t most = CC_HEADER_BYTES + CC_EAGER_BYTES;
    for (uint32_t next = 0; session.handed < session.end;) {
        size_t bytes = cc__session_next(&session, most), frames = 0;
        CHECK(bytes > 0 && bytes <= most);
        for (; frames < bytes; next += 1000) frames += CC_HEADER_BYTES + next;
        CHECK_EQ(frames, bytes);
        session.handed += bytes;
    }
    /* A peer that confirms half a frame is told nonsense, of which there is no more than was kept. */
    for (size_t start = 0; start < session.end; start++) {
        session.handed = session.start = start;
        size_t left = session.end - start, bytes = cc__session_next(&session, most);
        CHECK(bytes > 0 && bytes <= most && bytes <= left);
    }
    cc__session_free(&session);
    passed++;
}

static void there_is_a_bound(void) {
    cc__session session = {0};
    cc__session_start(&session, 7);
    size_t kept = 0;
    while (keep(&session, 1, 10000)) kept += 10000;
    CHECK(kept <= CC_CONTROL_QUEUE_BYTES && kept + 10000 > CC_CONTROL_QUEUE_BYTES);
    cc__session_start(&session, 8); /* the next one begins empty, in the same memory */
    CHECK(session.capacity > 0 && session.end == 0 && session.received == 0);
    CHECK(keep(&session, 1, 10000));
    cc__session_free(&session);
    passed++;
}

int main(void) {
    what_is_not_confirmed_goes_out_again();
    a_peer_cannot_have_what_was_never_sent();
    frames_stay_whole_while_the_memory_moves();
    whole_frames_are_handed_out();
    there_is_a_bound();
    printf("test_session: %d passed, 0 failed\n", passed);
    return 0;
}
