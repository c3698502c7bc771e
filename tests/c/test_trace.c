/* Goal: the ring keeps the last events, in order and whole, and a copy that is made while it is
 * written has no torn event and no gap.
 * Method: every field of an event is made of its number, so that a mixture of two shows; a writer that
 * never stops, and readers that count what they find, under ThreadSanitizer too. */
#include "csrc/base/trace.h"
#include "tests/c/check.h"

#include <pthread.h>

#define EVENTS 64
#define READERS 2
#define COPIES 3000

static int passed;

static cc_trace_event event_of(uint64_t number) {
    cc_trace_event event = {.time_ns = (int64_t)(number * 3),
                            .epoch = number * 5,
                            .sequence = number * 7,
                            .value = number * 11,
                            .more = ~number,
                            .group = (uint32_t)number,
                            .kind = (uint8_t)number,
                            .lane = (uint8_t)(number >> 8),
                            .what = (uint8_t)(number >> 16),
                            .code = (uint8_t)(number >> 24)};
    memcpy(event.peer, &number, sizeof event.peer);
    return event;
}

static void add(cc__trace *trace, uint64_t number) {
    cc_trace_event event = event_of(number);
    cc__trace_add(trace, &event);
}

static void check_copy(const cc_trace_event *events, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        cc_trace_event expected = event_of(events[i].number);
        expected.number = events[0].number + i;
        CHECK(memcmp(&events[i], &expected, sizeof expected) == 0);
    }
}

static void test_nothing_yet(void) {
    cc__trace *trace = cc__trace_open(EVENTS);
    cc_trace_event events[EVENTS];
    CHECK_EQ(cc__trace_read(trace, events, EVENTS), 0);
    cc__trace_close(trace);
    cc__trace_close(NULL);
    passed++;
}

/* Before, at and after the turn, many turns later; and into less room than there are events. */
static void test_the_last_ones_are_kept(void) {
    cc__trace *trace = cc__trace_open(EVENTS);
    cc_trace_event events[EVENTS + 10];
    for (uint64_t number = 1; number <= 10 * EVENTS; number++) {
        add(trace, number);
        uint32_t count = cc__trace_read(trace, events, EVENTS + 10);
        CHECK_EQ(count, number < EVENTS ? number : EVENTS);
        CHECK_EQ(events[count - 1].number, number);
        check_copy(events, count);
        count = cc__trace_read(trace, events, 5);
        CHECK_EQ(count, number < 5 ? number : 5);
        CHECK_EQ(events[count - 1].number, number);
        check_copy(events, count);
    }
    CHECK_EQ(cc__trace_read(trace, NULL, 0), 0);
    cc__trace_close(trace);
    passed++;
}

static void test_capacities_are_powers_of_two(void) {
    const uint32_t asked[] = {1, 2, 3, 64, 65, 1000}, given[] = {1, 2, 4, 64, 128, 1024};
    for (int i = 0; i < 6; i++) {
        cc__trace *trace = cc__trace_open(asked[i]);
        CHECK_EQ(trace->capacity, given[i]);
        cc__trace_close(trace);
    }
    passed++;
}

typedef struct shared {
    cc__trace *trace;
    atomic_int readers; /* still at it */
} shared;

static void *write_on(void *argument) {
    shared *all = argument;
    for (uint64_t number = 1; atomic_load(&all->readers) > 0; number++) add(all->trace, number);
    return NULL;
}

static void *read_on(void *argument) {
    shared *all = argument;
    cc_trace_event events[EVENTS];
    uint64_t last = 0, found = 0;
    for (int copies = 0; copies < COPIES || found == 0; copies++) {
        uint32_t count = cc__trace_read(all->trace, events, EVENTS);
        check_copy(events, count);
        found += count;
        if (count == 0) continue; /* overtaken at every slot */
        CHECK(events[count - 1].number >= last);
        last = events[count - 1].number;
    }
    atomic_fetch_sub(&all->readers, 1);
    return NULL;
}

static void test_readers_beside_the_writer(void) {
    shared all = {cc__trace_open(EVENTS), READERS};
    pthread_t writer, readers[READERS];
    CHECK_EQ(pthread_create(&writer, NULL, write_on, &all), 0);
    for (int i = 0; i < READERS; i++) CHECK_EQ(pthread_create(&readers[i], NULL, read_on, &all), 0);
    for (int i = 0; i < READERS; i++) pthread_join(readers[i], NULL);
    pthread_join(writer, NULL);
    cc__trace_close(all.trace);
    passed++;
}

static void test_every_kind_has_a_name(void) {
    for (int kind = CC_TRACE_POSTED; kind <= CC_TRACE_EVIDENCE; kind++) {
        CHECK(strcmp(cc_trace_name((cc_trace_kind)kind), "unknown") != 0);
        for (int other = CC_TRACE_POSTED; other < kind; other++)
            CHECK(strcmp(cc_trace_name((cc_trace_kind)kind), cc_trace_name((cc_trace_kind)other)) !=
                  0);
    }
    CHECK(strcmp(cc_trace_name((cc_trace_kind)0), "unknown") == 0);
    CHECK(strcmp(cc_trace_name((cc_trace_kind)(CC_TRACE_EVIDENCE + 1)), "unknown") == 0);
    passed++;
}

int main(void) {
    test_nothing_yet();
    test_the_last_ones_are_kept();
    test_capacities_are_powers_of_two();
    test_readers_beside_the_writer();
    test_every_kind_has_a_name();
    printf("test_trace: %d passed, 0 failed\n", passed);
    return 0;
}
