/* The second half of the conformance suite: how long memory is borrowed, the ways in which a stream
 * ends, and waking. The transport's memory errors show here if built with -fsanitize=address: what
 * was lent is freed at the first moment at which it may be. */
#include "tests/conformance/suite.h"

#include "tests/c/check.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 200000

static uint8_t *borrow(size_t bytes) {
    uint8_t *memory = malloc(bytes);
    CHECK(memory != NULL);
    return memory;
}

/* ---- release --------------------------------------------------------------------------------- */

static void a_released_send_still_arrives(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    for (int stream = 0; stream < 2; stream++) {
        if (stream) suite_pair(link.a, link.b, 1, &link.ab, &link.ba);
        size_t chunk = suite_at_most(suite, CHUNK), pending;
        uint8_t *memory = borrow(chunk);
        size_t bytes = suite_fill(&link, 11, memory, chunk, &pending);
        CHECK_EQ(link.a->ops->release(link.a->transport, link.ab->number, CC_RELEASE_BOTH), CC_OK);
        memset(memory, 0x55, chunk);
        free(memory);
        suite_drain(suite, &link, 11, bytes, 30000);
        SUITE_UNTIL(suite, link.ab->sent == 1);
        /* The stream goes on as if nothing had been. */
        char got[4] = "";
        int before = link.ba->received;
        CHECK_EQ(suite_send(link.a, link.ab, "yes", 3), CC_OK);
        if (suite_recv(link.b, link.ba, got, 3) == CC_PENDING)
            SUITE_UNTIL(suite, link.ba->received > before);
        CHECK(strcmp(got, "yes") == 0);
    }
}

static void a_released_recv_goes_to_scrap(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    size_t bytes = suite_at_most(suite, CHUNK), half = bytes / 2;
    uint8_t *out = borrow(bytes), *in = borrow(bytes), *copy = borrow(bytes);
    suite_pattern(12, 0, out, bytes);
    memset(in, 0, bytes);
    CHECK_EQ(suite_recv(link.b, link.ba, in, bytes), CC_PENDING);
    if (suite_send(link.a, link.ab, out, half) == CC_PENDING)
        SUITE_UNTIL(suite, link.ab->sent == 1);
    suite_turns(suite, 20); /* part of it may have come, or not */
    CHECK_EQ(link.b->ops->release(link.b->transport, link.ba->number, CC_RELEASE_BOTH), CC_OK);
    memcpy(copy, in, bytes);
    int sent = link.ab->sent;
    if (suite_send(link.a, link.ab, out + half, bytes - half) == CC_PENDING)
        SUITE_UNTIL(suite, link.ab->sent > sent);
    SUITE_UNTIL(suite, link.ba->received == 1);
    CHECK(memcmp(copy, in, bytes) == 0);
    free(in);
    /* What follows the scrap is not scrap. */
    char got[6] = "";
    CHECK_EQ(suite_send(link.a, link.ab, "after", 5), CC_OK);
    if (suite_recv(link.b, link.ba, got, 5) == CC_PENDING)
        SUITE_UNTIL(suite, link.ba->received == 2);
    CHECK(strcmp(got, "after") == 0);
    free(out);
    free(copy);
}

static void release_of_nothing_is_harmless(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    CHECK_EQ(link.a->ops->release(link.a->transport, link.ab->number, CC_RELEASE_BOTH), CC_OK);
    uint8_t byte = 9;
    CHECK_EQ(suite_recv(link.b, link.ba, &byte, 1), CC_PENDING);
    CHECK_EQ(link.b->ops->release(link.b->transport, link.ba->number, CC_RELEASE_BOTH), CC_OK);
    CHECK_EQ(link.b->ops->release(link.b->transport, link.ba->number, CC_RELEASE_BOTH), CC_OK);
    CHECK_EQ(suite_send(link.a, link.ab, "x", 1), CC_OK);
    SUITE_UNTIL(suite, link.ba->received == 1);
    CHECK_EQ(byte, 9);
}

/* A send that is given back must leave the recv of the same stream alone, and the other way round. */
static void release_is_of_one_direction(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    char got[6] = "";
    CHECK_EQ(suite_recv(link.b, link.ba, got, 5), CC_PENDING);
    CHECK_EQ(suite_send(link.a, link.ab, "he", 2), CC_OK);
    suite_turns(suite, 20);
    CHECK_EQ(link.b->ops->release(link.b->transport, link.ba->number, CC_RELEASE_SEND), CC_OK);
    CHECK_EQ(suite_send(link.a, link.ab, "llo", 3), CC_OK);
    SUITE_UNTIL(suite, link.ba->received == 1);
    CHECK(strcmp(got, "hello") == 0);
}

/* ---- endings --------------------------------------------------------------------------------- */

static void expect_closed(suite *suite, suite_end *end, suite_stream *stream) {
    SUITE_UNTIL(suite, stream->closed);
    CHECK_EQ(stream->status, CC_CLOSED);
    uint8_t byte;
    CHECK_EQ(suite_send(end, stream, "x", 1), CC_CLOSED);
    CHECK_EQ(suite_recv(end, stream, &byte, 1), CC_CLOSED);
    suite_close(end, stream, 0);
}

/* The last bytes before an orderly close arrive, pending ones included, and then comes the end. */
static void an_orderly_close_delivers(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    for (int stream = 0; stream < 3; stream++) {
        if (stream) suite_pair(link.a, link.b, stream, &link.ab, &link.ba);
        size_t chunk = suite_at_most(suite, CHUNK), pending;
        uint8_t *memory = borrow(chunk), byte;
        size_t bytes = suite_fill(&link, 13, memory, chunk, &pending);
        suite_close(link.a, link.ab, 1);
        memset(memory, 0x55, chunk);
        free(memory);
        suite_drain(suite, &link, 13, bytes, 70000);
        cc_status status = suite_recv(link.b, link.ba, &byte, 1);
        CHECK(status == CC_PENDING || status == CC_CLOSED);
        expect_closed(suite, link.b, link.ba);
    }
}

/* What came before the end is delivered also when nobody asked for it until the end was seen. */
static void late_receivers_get_it_all(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    for (int stream = 0; stream < 2; stream++) {
        if (stream) suite_pair(link.a, link.b, stream, &link.ab, &link.ba);
        uint8_t memory[3000], byte;
        suite_pattern(14, 0, memory, sizeof memory);
        CHECK(suite_send(link.a, link.ab, memory, sizeof memory) != CC_CLOSED);
        suite_close(link.a, link.ab, 1);
        suite_turns(suite, 30);
        CHECK(!link.ba->closed);
        suite_drain(suite, &link, 14, sizeof memory, 700);
        if (stream == 0) {
            cc_status status = suite_recv(link.b, link.ba, &byte, 1);
            CHECK(status == CC_PENDING || status == CC_CLOSED);
        }
        expect_closed(suite, link.b, link.ba);
    }
}

static void the_end_shows_without_a_recv(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    for (int stream = 0; stream < 2; stream++)
        for (int orderly = 0; orderly < 2; orderly++) {
            suite_pair(link.a, link.b, stream, &link.ab, &link.ba);
            suite_close(link.a, link.ab, orderly);
            expect_closed(suite, link.b, link.ba);
        }
}

static void an_abrupt_close_ends_the_other_side(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    for (int who = 0; who < 2; who++) {
        suite_pair(link.a, link.b, 1, &link.ab, &link.ba);
        suite_end *leaver = who ? link.a : link.b, *other = who ? link.b : link.a;
        suite_stream *left = who ? link.ab : link.ba, *stays = who ? link.ba : link.ab;
        uint8_t *memory = borrow(100);
        CHECK_EQ(suite_recv(other, stays, memory, 100), CC_PENDING);
        CHECK_EQ(suite_send(leaver, left, "abc", 3), CC_OK);
        suite_close(leaver, left, 0);
        SUITE_UNTIL(suite, stays->closed);
        free(memory); /* CLOSED was polled: it is ours again */
        CHECK_EQ(stays->received, 0);
        expect_closed(suite, other, stays);
    }
}

/* Both a send and a recv are under way when their stream is closed; the memory is freed at once. */
static void close_gives_memory_back(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    for (int orderly = 0; orderly < 2; orderly++) {
        suite_pair(link.a, link.b, 1, &link.ab, &link.ba);
        size_t chunk = suite_at_most(suite, CHUNK), pending;
        uint8_t *out = borrow(chunk), *in = borrow(chunk);
        CHECK_EQ(suite_recv(link.a, link.ab, in, chunk), CC_PENDING);
        suite_fill(&link, 15, out, chunk, &pending);
        CHECK_EQ(suite_send(link.b, link.ba, "abc", 3), CC_OK);
        suite_turns(suite, 10);
        suite_close(link.a, link.ab, orderly);
        free(out);
        free(in);
        suite_turns(suite, 50);
        suite_close(link.b, link.ba, 0);
    }
    suite_turns(suite, 50);
}

/* A sender whose peer vanishes must not wait for ever. */
static void a_pending_send_ends_with_the_stream(suite *suite) {
    suite_link link = suite_open_pair(suite, 2);
    size_t chunk = suite_at_most(suite, CHUNK), pending;
    uint8_t *memory = borrow(chunk);
    suite_fill(&link, 16, memory, chunk, &pending);
    suite_close(link.b, link.ba, 0);
    SUITE_UNTIL(suite, link.ab->closed);
    free(memory);
    expect_closed(suite, link.a, link.ab);
}

static void both_sides_may_close_at_once(suite *suite) {
    suite_link link = suite_open_pair(suite, 0);
    for (int i = 0; i < 4; i++) {
        suite_pair(link.a, link.b, i, &link.ab, &link.ba);
        suite_close(link.a, link.ab, i & 1);
        suite_close(link.b, link.ba, i & 2);
    }
    suite_turns(suite, 50); /* the harness fails at any event of a closed stream */
}

/* Several events are due and the caller takes only one: the others keep until they are asked for, a
 * wait does not sleep over them, and a close takes those of its stream away. */
static void keep_until_close(suite *suite, suite_end *a, suite_end *b, int orderly) {
    enum { COUNT = 4 };
    suite_stream *out[COUNT], *in[COUNT];
    cc_transport_event event;
    uint8_t got[COUNT];
    for (int i = 0; i < COUNT; i++) suite_pair(a, b, 1 + i, &out[i], &in[i]);
    for (int i = 0; i < COUNT; i++) {
        CHECK_EQ(suite_recv(b, in[i], &got[i], 1), CC_PENDING);
        CHECK_EQ(suite_send(a, out[i], "x", 1), CC_OK);
    }
    while (!b->ops->wait(b->transport, 0) || b->ops->poll(b->transport, &event, 1) == 0)
        suite->world->pass(suite->world, (cc_transport *[]){a->transport, b->transport}, 2);
    CHECK_EQ(event.kind, CC_TRANSPORT_RECEIVED);
    if (suite->world->threads) CHECK(b->ops->wait(b->transport, 50000 * CC__MS));
    for (int i = 0; i < COUNT; i++) suite_close(b, in[i], orderly);
    CHECK_EQ(b->ops->poll(b->transport, &event, 1), 0);
    suite_turns(suite, 30);
}

static void events_keep_until_a_close(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    keep_until_close(suite, a, b, 0);
    keep_until_close(suite, a, b, 1);
}

/* `stop` in order delivers what was sent, although the other side does not look meanwhile. */
static void stop_in_order_delivers(suite *suite) {
    cc_options options;
    suite_link link;
    uint8_t memory[1000], byte;
    link.b = suite_open(suite, NULL);
    suite_options(suite, 1, &options);
    options.timeouts.linger_ms = 30;
    link.a = suite_open(suite, &options);
    suite_pair(link.a, link.b, 1, &link.ab, &link.ba);
    suite_pattern(17, 0, memory, sizeof memory);
    CHECK(suite_send(link.a, link.ab, memory, sizeof memory) != CC_CLOSED);
    suite_stop(link.a, 0);
    suite_drain(suite, &link, 17, sizeof memory, 300);
    cc_status status = suite_recv(link.b, link.ba, &byte, 1);
    CHECK(status == CC_PENDING || status == CC_CLOSED);
    expect_closed(suite, link.b, link.ba);
}

static void stop_without_order_returns(suite *suite) {
    suite_link link = suite_open_pair(suite, 1);
    size_t chunk = suite_at_most(suite, CHUNK), pending;
    uint8_t *out = borrow(chunk), *in = borrow(10);
    suite_fill(&link, 18, out, chunk, &pending);
    CHECK_EQ(suite_recv(link.a, link.ab, in, 10), CC_PENDING);
    suite_stop(link.a, 1);
    free(out);
    free(in);
    suite_turns(suite, 5);
}

/* ---- waking ---------------------------------------------------------------------------------- */

static void *wait_long(void *arg) {
    suite_end *end = arg;
    end->ops->wait(end->transport, 50000 * CC__MS);
    return NULL;
}

/* The limit on each test's time is what fails here if a wake is lost. */
static void wake_ends_a_wait(suite *suite) {
    if (!suite->world->threads) return;
    suite_end *end = suite_open(suite, NULL);
    end->ops->wake(end->transport);
    end->ops->wait(end->transport, 50000 * CC__MS); /* woken before it began */
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, wait_long, end), 0);
        end->ops->wake(end->transport);
        CHECK_EQ(pthread_join(thread, NULL), 0);
    }
}

/* A dial that fails within the call, made while another thread waits: its event must be seen. */
static void a_call_beside_a_wait_is_noticed(suite *suite) {
    if (!suite->world->threads) return;
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    cc_hello hello = suite_hello(a, b, 0);
    suite_stop(b, 1);
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, wait_long, a), 0);
        hello.link++;
        suite_stream *out = suite_dial(a, b->address, &hello);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        SUITE_UNTIL(suite, out->closed);
        CHECK_EQ(out->status, CC_REFUSED);
    }
}

/* The arrangement of the product: one thread waits without the lock and polls with it, another makes
 * its calls meanwhile. If a call leaves something to do and the waiter sleeps on, nothing moves any
 * more and the test's time limit strikes. */
typedef struct driver {
    suite_end *end;
    pthread_mutex_t *lock;
    pthread_cond_t *moved;
    int stop, events, closed;
} driver;

static void *drive(void *arg) {
    driver *driver = arg;
    cc_transport *transport = driver->end->transport;
    cc_transport_event event;
    for (int stop = 0; !stop;) {
        transport->ops->wait(transport, 50000 * CC__MS);
        pthread_mutex_lock(driver->lock);
        if (transport->ops->poll(transport, &event, 1)) {
            driver->events += event.kind != CC_TRANSPORT_CLOSED;
            driver->closed += event.kind == CC_TRANSPORT_CLOSED;
            pthread_cond_broadcast(driver->moved);
        }
        stop = driver->stop;
        pthread_mutex_unlock(driver->lock);
    }
    return NULL;
}

static void calls_beside_a_driver(suite *suite) {
    enum { BYTES = 3000, ROUNDS = 50 };
    static uint8_t out[BYTES], in[BYTES];
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
    pthread_t threads[2];
    if (!suite->world->threads) return;
    suite_link link = suite_open_pair(suite, 0);
    driver drivers[2] = {{link.a, &lock, &moved, 0, 0, 0}, {link.b, &lock, &moved, 0, 0, 0}};
    for (int i = 0; i < 2; i++) CHECK_EQ(pthread_create(&threads[i], NULL, drive, &drivers[i]), 0);
    pthread_mutex_lock(&lock);
    for (int round = 0; round < ROUNDS; round++) {
        int from = round & 1, to = !from;
        int sent = drivers[from].events, received = drivers[to].events;
        suite_pattern(19, (uint64_t)round * BYTES, out, BYTES);
        if (suite_recv(to ? link.b : link.a, to ? link.ba : link.ab, in, BYTES) == CC_PENDING)
            received++;
        if (suite_send(from ? link.b : link.a, from ? link.ba : link.ab, out, BYTES) == CC_PENDING)
            sent++;
        while (drivers[from].events < sent || drivers[to].events < received)
            pthread_cond_wait(&moved, &lock);
        suite_pattern_check(19, (uint64_t)round * BYTES, in, BYTES);
    }
    suite_close(link.a, link.ab, 1);
    while (!drivers[1].closed) pthread_cond_wait(&moved, &lock);
    drivers[0].stop = drivers[1].stop = 1;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 2; i++) {
        suite_end *end = drivers[i].end;
        end->ops->wake(end->transport);
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
}

const suite_test suite_endings[] = {
    {"a_released_send_still_arrives", a_released_send_still_arrives},
    {"a_released_recv_goes_to_scrap", a_released_recv_goes_to_scrap},
    {"release_of_nothing_is_harmless", release_of_nothing_is_harmless},
    {"release_is_of_one_direction", release_is_of_one_direction},
    {"an_orderly_close_delivers", an_orderly_close_delivers},
    {"late_receivers_get_it_all", late_receivers_get_it_all},
    {"the_end_shows_without_a_recv", the_end_shows_without_a_recv},
    {"an_abrupt_close_ends_the_other_side", an_abrupt_close_ends_the_other_side},
    {"close_gives_memory_back", close_gives_memory_back},
    {"a_pending_send_ends_with_the_stream", a_pending_send_ends_with_the_stream},
    {"both_sides_may_close_at_once", both_sides_may_close_at_once},
    {"events_keep_until_a_close", events_keep_until_a_close},
    {"stop_in_order_delivers", stop_in_order_delivers},
    {"stop_without_order_returns", stop_without_order_returns},
    {"wake_ends_a_wait", wake_ends_a_wait},
    {"a_call_beside_a_wait_is_noticed", a_call_beside_a_wait_is_noticed},
    {"calls_beside_a_driver", calls_beside_a_driver},
};
const int suite_endings_count = (int)(sizeof suite_endings / sizeof suite_endings[0]);
