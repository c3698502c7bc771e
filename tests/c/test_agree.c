/* Goal: the two pure machines say what docs/protocol.md says: votes commit what all have voted for,
 * a record decides what is left, and who was late itself accuses nobody.
 * Method: random histories against models that keep everything and compute from scratch. */
#include "csrc/agree/commit.h"
#include "csrc/agree/detector.h"
#include "tests/c/check.h"

#include <stdint.h>

#define SIZE_MAX_HERE 20

static int passed;
static uint64_t state = 8191; /* the seed of all chance here */

static uint64_t draw(void) {
    uint64_t z = (state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* ---- commit --------------------------------------------------------------------------------- */

static uint64_t least(const uint64_t *values, uint32_t count) {
    uint64_t found = UINT64_MAX;
    for (uint32_t i = 0; i < count; i++) found = values[i] < found ? values[i] : found;
    return found;
}

static void test_tally(void) {
    for (int history = 0; history < 4000; history++) {
        uint64_t voted[SIZE_MAX_HERE], model[SIZE_MAX_HERE];
        uint32_t size = 1 + (uint32_t)(draw() % SIZE_MAX_HERE);
        uint64_t base = history % 3 ? draw() % 100 : UINT64_MAX - 40;
        cc__tally tally;
        cc__tally_start(&tally, voted, size, base);
        CHECK_EQ(tally.committed, base);
        for (uint32_t i = 0; i < size; i++) model[i] = base;
        for (int vote = 0; vote < 200; vote++) {
            uint32_t member = (uint32_t)(draw() % size);
            /* Newer, the same again, or one that was overtaken on the way. */
            uint64_t watermark = model[member];
            switch (draw() % 4) {
            case 0: watermark = draw() % 2 ? 0 : base; break;
            case 1: break;
            default:
                if (watermark < UINT64_MAX - 3) watermark += 1 + draw() % 3;
            }
            uint64_t before = least(model, size);
            if (watermark > model[member]) model[member] = watermark;
            int rose = cc__tally_vote(&tally, member, watermark);
            CHECK_EQ(tally.committed, least(model, size));
            CHECK_EQ(rose != 0, least(model, size) > before);
            for (uint32_t i = 0; i < size; i++) CHECK_EQ(tally.voted[i], model[i]);
        }
    }
    passed++;
}

static void test_a_group_of_one_commits_by_itself(void) {
    uint64_t voted[1];
    cc__tally tally;
    cc__tally_start(&tally, voted, 1, 7);
    for (uint64_t sequence = 8; sequence < 20; sequence++) {
        CHECK(cc__tally_vote(&tally, 0, sequence));
        CHECK_EQ(tally.committed, sequence);
        CHECK(!cc__tally_vote(&tally, 0, sequence));
    }
    passed++;
}

static void test_fate(void) {
    for (uint64_t committed = 0; committed < 12; committed++) {
        for (uint64_t failed = committed; failed < 12; failed++) {
            cc_outcome outcome = {.committed = committed, .failed = failed};
            for (uint64_t sequence = 1; sequence < 14; sequence++) {
                cc__fate fate = cc__fate_of(sequence, &outcome);
                CHECK_EQ(fate == CC__FATE_COMMITTED, sequence <= committed);
                CHECK_EQ(fate == CC__FATE_FAILED, sequence > committed && sequence <= failed);
                CHECK_EQ(fate == CC__FATE_GOES_ON, sequence > failed);
            }
        }
    }
    passed++;
}

/* ---- detector ------------------------------------------------------------------------------- */

static void test_silence_without_lateness(void) {
    cc__detector detector;
    cc__watch watch;
    cc__detector_start(&detector, 1000, 500, 100);
    cc__watch_heard(&watch, &detector, 1000);
    for (int64_t now = 1100; now <= 1400; now += 100) {
        cc__detector_tick(&detector, now);
        CHECK_EQ(cc__watch_deadline(&watch, &detector), 1500);
    }
    cc__watch_heard(&watch, &detector, 1410);
    cc__detector_tick(&detector, 1500);
    CHECK_EQ(cc__watch_deadline(&watch, &detector), 1910);
    passed++;
}

/* Stopped for an hour: the tick that ends it accuses nobody, and a whole dead time begins anew but
 * for what was used up before. */
static void test_who_slept_accuses_nobody(void) {
    const int64_t hour = INT64_C(3600000000000), ms = 1000000;
    cc__detector detector;
    cc__watch watch;
    cc__detector_start(&detector, 0, 2000 * ms, 200 * ms);
    cc__watch_heard(&watch, &detector, 100 * ms);
    cc__detector_tick(&detector, 200 * ms);
    cc__detector_tick(&detector, 200 * ms + hour);
    CHECK_EQ(cc__watch_deadline(&watch, &detector), 100 * ms + 2000 * ms + hour - 200 * ms);
    CHECK(cc__watch_deadline(&watch, &detector) > 200 * ms + hour);
    /* What is heard afterwards has nothing to do with it. */
    cc__watch_heard(&watch, &detector, 201 * ms + hour);
    CHECK_EQ(cc__watch_deadline(&watch, &detector), 2201 * ms + hour);
    passed++;
}

/* Any history: the deadline is the hearing plus the dead time plus all lateness since then. */
static void test_lateness(void) {
    for (int history = 0; history < 3000; history++) {
        int64_t now = (int64_t)(draw() % 1000000), last = now;
        int64_t dead = 1 + (int64_t)(draw() % 10000), most = 1 + (int64_t)(draw() % 500);
        int64_t heard[5], late[5]; /* since it was heard */
        cc__detector detector;
        cc__watch watches[5];
        cc__detector_start(&detector, now, dead, most);
        for (int i = 0; i < 5; i++) {
            cc__watch_heard(&watches[i], &detector, now);
            heard[i] = now;
            late[i] = 0;
        }
        for (int event = 0; event < 100; event++) {
            now += (int64_t)(draw() % (uint64_t)(2 * most));
            int i = (int)(draw() % 10);
            if (i < 5) {
                cc__watch_heard(&watches[i], &detector, now);
                heard[i] = now;
                late[i] = 0;
            } else {
                cc__detector_tick(&detector, now);
                int64_t slept = now - last > most ? now - last - most : 0;
                for (int j = 0; j < 5; j++) late[j] += slept;
                last = now;
            }
            for (int j = 0; j < 5; j++)
                CHECK_EQ(cc__watch_deadline(&watches[j], &detector), heard[j] + dead + late[j]);
        }
    }
    passed++;
}

int main(void) {
    test_tally();
    test_a_group_of_one_commits_by_itself();
    test_fate();
    test_silence_without_lateness();
    test_who_slept_accuses_nobody();
    test_lateness();
    printf("test_agree: %d passed, 0 failed\n", passed);
    return 0;
}
