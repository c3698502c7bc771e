/* The tools of the conformance suite: endpoints, turns, and the checks on every event. */
#include "tests/conformance/suite.h"

#include "tests/c/check.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STUCK_NS (20000 * CC__MS)
#define TEST_LIMIT_S 60 /* of real time, for one test */

static const uint8_t run_token[16] = {7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t suite_random(suite *suite) {
    return mix(suite->seed * 1000003u + suite->random++);
}

uint32_t suite_below(suite *suite, uint32_t bound) {
    return (uint32_t)(suite_random(suite) % bound);
}

/* ---- endpoints and streams ------------------------------------------------------------------- */

void suite_options(suite *suite, int index, cc_options *options) {
    memset(options, 0, sizeof *options);
    options->transport = suite->world->transport;
    for (int i = 0; i < 16; i++)
        options->id.bytes[i] = (uint8_t)(mix(suite->seed + (uint64_t)index) >> i);
    options->id.bytes[0] = (uint8_t)(index + 1);
    options->streams = 4;
    options->segment_bytes = 65536;
    options->timeouts =
        (cc_timeouts){.beat_ms = 200, .dead_ms = 2000, .connect_ms = 5000, .linger_ms = 1000};
    suite->world->options(suite->world, options);
}

suite_end *suite_open_without_token(suite *suite, const cc_options *options) {
    char message[CC_MESSAGE_MAX] = "";
    CHECK(suite->count < SUITE_ENDS_MAX);
    suite_end *end = calloc(1, sizeof *end);
    CHECK(end != NULL);
    end->suite = suite;
    if (options)
        end->options = *options;
    else
        suite_options(suite, suite->count, &end->options);
    end->ops = cc_transport_find(suite->world->transport);
    CHECK(end->ops != NULL);
    cc_transport_options open = {&end->options, cc__clock_monotonic(), 65536, 48};
    cc_status status = end->ops->open(&open, &end->transport, message);
    if (status) fprintf(stderr, "open: status %d: %s\n", (int)status, message);
    CHECK_EQ(status, CC_OK);
    CHECK(end->transport != NULL && end->transport->ops == end->ops);
    memset(end->address, 'x', sizeof end->address);
    end->ops->address(end->transport, end->address);
    CHECK(memchr(end->address, 0, sizeof end->address) != NULL);
    suite->ends[suite->count++] = end;
    return end;
}

suite_end *suite_open(suite *suite, const cc_options *options) {
    suite_end *end = suite_open_without_token(suite, options);
    end->ops->set_token(end->transport, run_token);
    return end;
}

void suite_stop(suite_end *end, int abort) {
    if (end->transport) end->ops->stop(end->transport, abort);
    end->transport = NULL;
}

cc_hello suite_hello(const suite_end *from, const suite_end *to, int stream) {
    cc_hello hello;
    memset(&hello, 0, sizeof hello);
    hello.from = from->options.id;
    hello.to = to->options.id;
    memcpy(hello.token, run_token, 16);
    hello.stream = (uint16_t)stream;
    hello.streams = (uint16_t)from->options.streams;
    hello.segment_bytes = from->options.segment_bytes;
    hello.link = suite_random(from->suite);
    return hello;
}

static suite_stream *find(suite_end *end, cc_stream number) {
    for (int i = 0; i < end->count; i++)
        if (end->streams[i].number == number) return &end->streams[i];
    return NULL;
}

static suite_stream *add(suite_end *end, cc_stream number, const cc_hello *hello) {
    CHECK(number != CC_STREAM_NONE);
    CHECK(find(end, number) == NULL); /* numbers are not used again soon */
    CHECK(end->count < SUITE_STREAMS_MAX);
    suite_stream *stream = &end->streams[end->count++];
    *stream = (suite_stream){.number = number, .hello = *hello};
    return stream;
}

suite_stream *suite_dial(suite_end *from, const char *address, const cc_hello *hello) {
    cc_stream number = CC_STREAM_NONE;
    CHECK_EQ(from->ops->connect(from->transport, address, hello, &number), CC_OK);
    return add(from, number, hello);
}

suite_stream *suite_dial_through(suite_end *from, const char *address, const cc_hello *hello) {
    cc_stream number = CC_STREAM_NONE;
    CHECK_EQ(from->ops->connect_through(from->transport, address, hello, &number), CC_OK);
    return add(from, number, hello);
}

suite_stream *suite_accepted(suite_end *end, const cc_hello *hello) {
    for (int i = 0; i < end->count; i++)
        if (end->streams[i].accepted && end->streams[i].hello.link == hello->link &&
            end->streams[i].hello.stream == hello->stream)
            return &end->streams[i];
    return NULL;
}

void suite_pair(suite_end *from, suite_end *to, int stream, suite_stream **dialled,
                suite_stream **accepted) {
    cc_hello hello = suite_hello(from, to, stream);
    *dialled = suite_dial(from, to->address, &hello);
    SUITE_UNTIL(from->suite, (*dialled)->connected && suite_accepted(to, &hello));
    *accepted = suite_accepted(to, &hello);
}

cc_status suite_sendv(suite_end *end, suite_stream *stream, const struct iovec *iov, int count) {
    cc_status status = end->ops->send(end->transport, stream->number, iov, count);
    CHECK(status == CC_OK || status == CC_PENDING || status == CC_CLOSED);
    if (status == CC_PENDING) stream->may_send = 1;
    return status;
}

cc_status suite_send(suite_end *end, suite_stream *stream, const void *data, size_t bytes) {
    struct iovec iov = {(void *)(uintptr_t)data, bytes};
    return suite_sendv(end, stream, &iov, 1);
}

cc_status suite_recv(suite_end *end, suite_stream *stream, void *place, size_t bytes) {
    cc_status status = end->ops->recv(end->transport, stream->number, place, bytes);
    CHECK(status == CC_OK || status == CC_PENDING || status == CC_CLOSED);
    if (status == CC_PENDING) stream->may_receive = 1;
    return status;
}

void suite_close(suite_end *end, suite_stream *stream, int orderly) {
    CHECK(!stream->dropped);
    stream->dropped = 1;
    end->ops->close(end->transport, stream->number, orderly);
}

/* ---- turns ----------------------------------------------------------------------------------- */

static void check_event(suite_end *end, const cc_transport_event *event) {
    suite_stream *stream = find(end, event->stream);
    if (event->kind == CC_TRANSPORT_ACCEPTED) {
        add(end, event->stream, &event->hello)->accepted = 1;
        return;
    }
    CHECK(stream != NULL);
    CHECK(!stream->dropped && !stream->closed);
    switch (event->kind) {
    case CC_TRANSPORT_CONNECTED:
        CHECK(!stream->connected && !stream->accepted);
        stream->connected = 1;
        break;
    case CC_TRANSPORT_SENT:
        CHECK(stream->may_send);
        stream->may_send = 0;
        stream->sent++;
        break;
    case CC_TRANSPORT_RECEIVED:
        CHECK(stream->may_receive);
        stream->may_receive = 0;
        stream->received++;
        break;
    case CC_TRANSPORT_CLOSED:
        CHECK(event->status != CC_OK && event->status != CC_PENDING);
        stream->closed = 1;
        stream->status = event->status;
        break;
    default: CHECK(!"an event of a kind that there is not");
    }
}

static void run_turn(suite *suite) {
    cc_transport *transports[SUITE_ENDS_MAX] = {NULL};
    cc_transport_event events[8];
    int total = 0;
    for (int i = 0; i < suite->count; i++) {
        suite_end *end = suite->ends[i];
        transports[i] = end->transport;
        if (!end->transport) continue;
        end->ops->wait(end->transport, 0);
        int max = 1 + (int)suite_below(suite, 8);
        memset(events, 0xee, sizeof events);
        int count = end->ops->poll(end->transport, events, max);
        CHECK(count >= 0 && count <= max);
        for (int k = 0; k < count; k++) check_event(end, &events[k]);
        total += count;
    }
    if (total == 0) suite->world->pass(suite->world, transports, suite->count);
}

static int64_t time_now(suite *suite) {
    for (int i = 0; i < suite->count; i++) {
        suite_end *end = suite->ends[i];
        if (end->transport) {
            cc__clock clock = end->ops->clock(end->transport);
            return cc__now(&clock);
        }
    }
    return 0;
}

void suite_turn(suite *suite, const char *file, int line, const char *what) {
    int64_t now = time_now(suite);
    if (suite->stuck_ns == 0) suite->stuck_ns = now + STUCK_NS;
    if (now > suite->stuck_ns) {
        fprintf(stderr, "%s:%d: failed: did not come true in 20 s: %s\n", file, line, what);
        exit(1);
    }
    run_turn(suite);
}

void suite_turns(suite *suite, int count) {
    while (count-- > 0) run_turn(suite);
}

/* ---- running --------------------------------------------------------------------------------- */

int suite_run_tests(suite_world *world, const suite_test *tests, int count) {
    const char *text = getenv("SUITE_SEED");
    const char *only = getenv("SUITE_TEST");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 1;
    int passed = 0;
    for (int i = 0; i < count; i++) {
        if (only && strcmp(only, tests[i].name) != 0) continue;
        /* Said before the test runs: a test that ends the program cannot say it afterwards. */
        printf("%s: %s (seed %llu)\n", world->name, tests[i].name, (unsigned long long)seed);
        fflush(stdout);
        suite suite = {.world = world, .seed = seed + (uint64_t)i * 7919};
        alarm(TEST_LIMIT_S);
        if (world->begin) world->begin(world, suite.seed);
        tests[i].run(&suite);
        for (int k = 0; k < suite.count; k++) {
            suite_stop(suite.ends[k], 1);
            free(suite.ends[k]);
        }
        if (world->end) world->end(world);
        alarm(0);
        passed++;
    }
    return passed;
}
