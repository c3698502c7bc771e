/* Goal: what is told of a link comes in an order that its users can rely on, whatever the order in
 * which its streams open and however much has arrived by then.
 * Method: a transport that is a script: what is to be read from each stream is there at once, as for
 * a process that was stopped between its write and its read. */
#include "csrc/link/link.h"
#include "tests/c/check.h"

#include <string.h>

enum { CONTROL = 10, BULK = 11, AGAIN = 20 /* added: the streams of the second connection */ };

static int passed;
static uint8_t script[4096]; /* of the stream CONTROL or AGAIN + CONTROL */
static size_t script_begin, script_end;

static int64_t fake_now(void *unused) {
    (void)unused;
    return 1000 * CC__MS;
}

static cc__clock fake_clock(cc_transport *transport) {
    (void)transport;
    return (cc__clock){fake_now, NULL};
}

static cc_status fake_connect(cc_transport *transport, const char *address, const cc_hello *hello,
                              cc_stream *out) {
    (void)transport, (void)address, (void)hello;
    *out = 99;
    return CC_OK;
}

static cc_status fake_route(cc_transport *transport, const cc_peer_id *peer, const char *address) {
    (void)transport, (void)peer, (void)address;
    return CC_OK;
}

static cc_status fake_send(cc_transport *transport, cc_stream stream, const struct iovec *iov,
                           int count) {
    (void)transport, (void)stream, (void)iov, (void)count;
    return CC_OK;
}

static cc_status fake_recv(cc_transport *transport, cc_stream stream, void *place, size_t bytes) {
    (void)transport;
    bool is_control = stream == CONTROL || stream == AGAIN + CONTROL;
    if (!is_control || script_end - script_begin < bytes) return CC_PENDING;
    memcpy(place, script + script_begin, bytes);
    script_begin += bytes;
    return CC_OK;
}

static void fake_close(cc_transport *transport, cc_stream stream, int orderly) {
    (void)transport, (void)stream, (void)orderly;
}

static const cc_transport_ops OPS = {
    .clock = fake_clock,
    .connect = fake_connect,
    .route = fake_route,
    .send = fake_send,
    .recv = fake_recv,
    .close = fake_close,
};

static void say(const cc__frame *frame) {
    cc__frame_pack(frame, script + script_end);
    memset(script + script_end + CC_HEADER_BYTES, 7, frame->length);
    script_end += CC_HEADER_BYTES + frame->length;
}

static void accept(cc__links *links, const cc_peer_id *from, cc_stream stream, uint16_t index,
                   uint64_t dial) {
    cc_transport_event event = {.kind = CC_TRANSPORT_ACCEPTED,
                                .stream = stream,
                                .hello = {.from = *from, .stream = index, .link = dial}};
    cc__links_feed(links, &event);
}

static cc__link_event_kind next(cc__links *links) {
    cc__link_event event;
    do
        if (cc__links_next(links, &event)) {
            if (event.kind == CC__LINK_WANT)
                cc__links_place(links, event.channel, event.channel->scratch, NULL);
            return event.kind;
        }
    while (cc__links_resume(links));
    return 0;
}

static void that_it_is_mended_comes_before_what_it_brings(void) {
    cc_transport transport = {&OPS};
    cc_options options = {.streams = 1, .segment_bytes = 64, .timeouts = {.beat_ms = 200}};
    cc_member member = {.id = {{2}}, .serial = 2, .address = "2"};
    cc__links links;
    cc__links_start(&links, &transport, &options);
    CHECK(cc__links_want(&links, &member, 1) != NULL);
    script_begin = script_end = 0;
    say(&(cc__frame){.type = CC__SESSION});
    accept(&links, &member.id, BULK, 1, 5);
    CHECK_EQ(next(&links), 0);
    accept(&links, &member.id, CONTROL, 0, 5);
    CHECK_EQ(next(&links), CC__LINK_CONNECTED);
    CHECK_EQ(next(&links), 0);
    cc_transport_event closed = {CC_TRANSPORT_CLOSED, .stream = CONTROL, .status = CC_CLOSED};
    cc__links_feed(&links, &closed);
    CHECK_EQ(next(&links), 0);
    say(&(cc__frame){.type = CC__SESSION, .epoch = 5});
    say(&(cc__frame){.type = CC__EAGER, .length = 16, .group = 1});
    say(&(cc__frame){.type = CC__RESUMED, .offset = 6});
    accept(&links, &member.id, AGAIN + BULK, 1, 6);
    CHECK_EQ(next(&links), 0);
    accept(&links, &member.id, AGAIN + CONTROL, 0, 6);
    CHECK_EQ(next(&links), CC__LINK_MENDED);
    CHECK_EQ(next(&links), CC__LINK_WANT);
    CHECK_EQ(next(&links), CC__LINK_PAYLOAD);
    CHECK_EQ(next(&links), CC__LINK_FRAME);
    CHECK_EQ(next(&links), 0);
    cc__links_stop(&links, true);
    passed++;
}

/* Whatever it is: not even a heartbeat, which would confirm what an earlier connection brought. */
static void a_session_opens_a_connection(void) {
    for (uint8_t type = CC__BEAT; type <= CC__RESUMED; type++) {
        cc_transport transport = {&OPS};
        cc_options options = {.streams = 1, .segment_bytes = 64, .timeouts = {.beat_ms = 200}};
        cc_member member = {.id = {{2}}, .serial = 2, .address = "2"};
        cc__links links;
        cc__links_start(&links, &transport, &options);
        CHECK(cc__links_want(&links, &member, 1) != NULL);
        script_begin = script_end = 0;
        say(&(cc__frame){.type = type});
        accept(&links, &member.id, BULK, 1, 5);
        accept(&links, &member.id, CONTROL, 0, 5);
        CHECK_EQ(next(&links), type == CC__SESSION ? CC__LINK_CONNECTED : CC__LINK_LOST);
        CHECK_EQ(next(&links), 0);
        cc__links_stop(&links, true);
    }
    passed++;
}

int main(void) {
    a_session_opens_a_connection();
    that_it_is_mended_comes_before_what_it_brings();
    printf("test_links: %d passed, 0 failed\n", passed);
    return 0;
}
