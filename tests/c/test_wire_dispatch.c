/* Goal: reports and records survive the way to bytes and back, and nothing else is taken for one.
 * Method: layouts by hand from docs/protocol.md section 3; random ones, up to the largest; each cut
 * short at every byte, with a byte more, with every bit flipped; random bytes. What is taken must be
 * those very bytes when packed again, and within its bounds. Memory is exact, so that a sanitizer
 * sees a byte too many. */
#include "csrc/wire/dispatch.h"
#include "tests/c/check.h"

#include <stdlib.h>
#include <string.h>

static int passed;
static uint64_t state = 20250313; /* the seed of all chance here */

static uint64_t draw(void) {
    uint64_t z = (state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint32_t below(uint32_t most) {
    return (uint32_t)(draw() % most);
}

static void any_text(char out[CC_DETAIL_MAX], uint32_t length) {
    memset(out, 0, CC_DETAIL_MAX);
    for (uint32_t i = 0; i < length; i++) out[i] = (char)(1 + below(255));
}

/* `full`: the largest there is. */
static cc_report any_report(int full) {
    cc_report report = {.cause = (cc_cause)(2 + below(5)), .wants = below(4), .boundary = draw()};
    report.n_lanes = full ? 16 : below(5);
    report.n_evidence = full ? 64 : below(4);
    for (uint32_t i = 0; i < report.n_lanes; i++) {
        cc_lane_report *lane = &report.lanes[i];
        lane->lane = full ? i : 3 * i + below(3);
        lane->committed = draw() >> 2;
        lane->done = lane->committed + below(70);
        lane->posted = lane->done + (full ? 64 : below(70));
        uint64_t open = lane->posted - lane->committed;
        lane->n_calls = full ? 64 : (uint32_t)(open < 64 ? open : 64);
        for (uint32_t call = 0; call < lane->n_calls; call++) lane->calls[call] = draw();
    }
    for (uint32_t i = 0; i < report.n_evidence; i++) {
        for (int at = 0; at < 16; at++) report.evidence[i].peer.bytes[at] = (uint8_t)draw();
        report.evidence[i].peer.bytes[0] |= 1;
        report.evidence[i].kind = (cc_evidence_kind)(1 + below(5));
    }
    any_text(report.detail, full ? 255 : below(40));
    return report;
}

static cc__delta any_delta(int full) {
    cc__delta delta = {.cause = (cc_cause)(3 + below(4)), .lost_rank = below(1024)};
    for (int at = 0; at < 16; at++) delta.lost.bytes[at] = (uint8_t)draw();
    delta.network = (cc_network){draw(), draw()};
    delta.size = full ? 1024 : 1 + below(40);
    delta.n_lanes = full ? 16 : below(4);
    for (uint32_t i = 0; i < delta.size; i++)
        if (draw() % 2) delta.stay[i / 8] |= (uint8_t)(1u << (i % 8));
    for (uint32_t i = 0; i < delta.n_lanes; i++) {
        uint64_t committed = draw() >> 2, failed = committed + below(9);
        delta.lanes[i] =
            (cc_outcome){full ? i : 4 * i + below(4), committed, failed, failed + below(9)};
    }
    any_text(delta.detail, full ? 255 : below(40));
    return delta;
}

/* ---- both kinds by one interface ------------------------------------------------------------ */

typedef struct kind {
    uint32_t least, most;
    uint32_t (*make)(int full, uint8_t *out);
    cc_status (*take)(const uint8_t *in, uint32_t length, uint8_t *again, uint32_t *bytes);
} kind;

static uint32_t make_sealed(int full, uint8_t *out) {
    cc_report report = any_report(full);
    return cc__sealed_pack(&report, out);
}

static uint32_t make_epoch(int full, uint8_t *out) {
    cc__delta delta = any_delta(full);
    return cc__delta_pack(&delta, out);
}

static cc_status take_sealed(const uint8_t *in, uint32_t length, uint8_t *again, uint32_t *bytes) {
    cc_report report;
    cc_status status = cc__sealed_unpack(in, length, &report);
    if (status != CC_OK) return status;
    CHECK(report.group == 0 && report.epoch == 0);
    CHECK(report.cause >= 2 && report.cause <= 6 && report.wants <= 3);
    CHECK(report.n_lanes <= 16 && report.n_evidence <= 64);
    for (uint32_t i = 0; i < report.n_lanes; i++) {
        const cc_lane_report *lane = &report.lanes[i];
        CHECK(lane->lane < 16 && (i == 0 || lane->lane > report.lanes[i - 1].lane));
        CHECK(lane->committed <= lane->done && lane->done <= lane->posted);
        CHECK(lane->n_calls <= 64 && lane->n_calls <= lane->posted - lane->committed);
    }
    for (uint32_t i = 0; i < report.n_evidence; i++) {
        static const cc_peer_id zero;
        CHECK(report.evidence[i].kind >= 1 && report.evidence[i].kind <= 5);
        CHECK(memcmp(&report.evidence[i].peer, &zero, sizeof zero) != 0);
    }
    CHECK(memchr(report.detail, 0, CC_DETAIL_MAX) != NULL);
    *bytes = cc__sealed_pack(&report, again);
    return CC_OK;
}

static cc_status take_epoch(const uint8_t *in, uint32_t length, uint8_t *again, uint32_t *bytes) {
    cc__delta delta;
    cc_status status = cc__delta_unpack(in, length, &delta);
    if (status != CC_OK) return status;
    CHECK(delta.cause >= 3 && delta.cause <= 6 && delta.lost_rank < 1024);
    CHECK(delta.size >= 1 && delta.size <= 1024 && delta.n_lanes <= 16);
    for (uint32_t i = 0; i < delta.n_lanes; i++) {
        const cc_outcome *lane = &delta.lanes[i];
        CHECK(lane->lane < 16 && (i == 0 || lane->lane > delta.lanes[i - 1].lane));
        CHECK(lane->committed <= lane->failed && lane->failed <= lane->posted);
    }
    for (uint32_t i = delta.size; i < 1100; i++) CHECK(!cc__delta_stays(&delta, i));
    CHECK(memchr(delta.detail, 0, CC_DETAIL_MAX) != NULL);
    *bytes = cc__delta_pack(&delta, again);
    return CC_OK;
}

static const kind KINDS[] = {
    {CC__SEALED_BYTES_MIN, CC__SEALED_BYTES_MAX, make_sealed, take_sealed},
    {CC__EPOCH_BYTES_MIN, CC__EPOCH_BYTES_MAX, make_epoch, take_epoch},
};

/* Whether bytes are taken; if so they are checked, packed again and compared. */
static int is_taken(const kind *kind, const uint8_t *from, uint32_t length) {
    uint8_t *in = malloc(length ? length : 1), *again = malloc(kind->most);
    CHECK(in != NULL && again != NULL);
    memcpy(in, from, length);
    uint32_t bytes = 0;
    cc_status status = kind->take(in, length, again, &bytes);
    CHECK(status == CC_OK || status == CC_PROTOCOL);
    if (status == CC_OK) CHECK(bytes == length && memcmp(in, again, length) == 0);
    free(in);
    free(again);
    return status == CC_OK;
}

static void test_round_trip(void) {
    uint8_t bytes[CC__SEALED_BYTES_MAX + 1];
    for (size_t k = 0; k < 2; k++) {
        CHECK_EQ(KINDS[k].make(1, bytes), KINDS[k].most);
        CHECK(is_taken(&KINDS[k], bytes, KINDS[k].most));
        for (int i = 0; i < 5000; i++) {
            uint32_t length = KINDS[k].make(0, bytes);
            CHECK(length >= KINDS[k].least && is_taken(&KINDS[k], bytes, length));
        }
    }
    passed++;
}

static void test_lengths(void) {
    uint8_t bytes[CC__SEALED_BYTES_MAX + 1];
    for (size_t k = 0; k < 2; k++) {
        for (int i = 0; i < 12; i++) {
            uint32_t length = KINDS[k].make(i == 0, bytes);
            for (uint32_t cut = 0; cut < length; cut++) CHECK(!is_taken(&KINDS[k], bytes, cut));
            bytes[length] = (uint8_t)draw();
            CHECK(!is_taken(&KINDS[k], bytes, length + 1));
        }
    }
    passed++;
}

static void test_flipped_bits(void) {
    uint8_t bytes[CC__SEALED_BYTES_MAX];
    long taken = 0, refused = 0;
    for (size_t k = 0; k < 2; k++) {
        for (int i = 0; i < 50; i++) {
            uint32_t length = KINDS[k].make(0, bytes);
            for (uint32_t bit = 0; bit < 8 * length; bit++) {
                bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
                if (is_taken(&KINDS[k], bytes, length))
                    taken++;
                else
                    refused++;
                bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
            }
        }
    }
    CHECK(taken > 1000 && refused > 1000);
    passed++;
}

static void test_random_bytes(void) {
    uint8_t bytes[CC__SEALED_BYTES_MAX];
    for (size_t k = 0; k < 2; k++) {
        for (int i = 0; i < 50000; i++) {
            uint32_t length = below(600);
            uint32_t begin = i % 2 ? KINDS[k].make(0, bytes) / 2 : 0; /* half of it is right */
            for (uint32_t at = begin; at < length; at++) bytes[at] = (uint8_t)draw();
            is_taken(&KINDS[k], bytes, length);
        }
    }
    passed++;
}

static void test_layouts(void) {
    static const uint8_t sealed[] = {
        3, 0, 0, 0, 1, 0, 0, 0, 0x11, 0x22, 0, 0, 0,    0,    0, 0, 1, 0, 1,   0,    2,    0,
        0, 0, 5, 0, 0, 0, 1, 0, 0,    0,    6, 0, 0,    0,    0, 0, 0, 0, 7,   0,    0,    0,
        0, 0, 0, 0, 8, 0, 0, 0, 0,    0,    0, 0, 0x88, 0x77, 0, 0, 0, 0, 0,   0x99, 0xab, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0,    0,    0, 0, 0,    0xcd, 2, 0, 0, 0, 'h', 'i'};
    cc_report report = {.cause = CC_CAUSE_LOST,
                        .wants = CC_WANT_JOIN,
                        .boundary = 0x2211,
                        .n_lanes = 1,
                        .n_evidence = 1,
                        .detail = "hi"};
    report.lanes[0] = (cc_lane_report){5, 6, 7, 8, 1, {UINT64_C(0x9900000000007788)}};
    report.evidence[0] = (cc_evidence){{{0xab, [15] = 0xcd}}, CC_EVIDENCE_REFUSED};
    uint8_t out[CC__SEALED_BYTES_MAX];
    CHECK_EQ(cc__sealed_pack(&report, out), sizeof sealed);
    CHECK(memcmp(out, sealed, sizeof sealed) == 0);

    static const uint8_t epoch[] = {
        6, 0, 0, 0, 0xab, 0,    0, 0, 0,    0,    0, 0, 0,    0,    0, 0, 0, 0, 0,   0xcd,
        9, 0, 0, 0, 0x34, 0x12, 0, 0, 0,    0,    0, 0, 0x78, 0x56, 0, 0, 0, 0, 0,   0,
        9, 0, 1, 0, 2,    0,    0, 0, 0x05, 0x01, 4, 0, 0,    0,    1, 0, 0, 0, 0,   0,
        0, 0, 2, 0, 0,    0,    0, 0, 0,    0,    3, 0, 0,    0,    0, 0, 0, 0, 'h', 'o'};
    cc__delta delta = {.cause = CC_CAUSE_MISMATCH,
                       .lost = {{0xab, [15] = 0xcd}},
                       .lost_rank = 9,
                       .network = {0x1234, 0x5678},
                       .size = 9,
                       .stay = {0x05, 0x01},
                       .n_lanes = 1,
                       .lanes = {{4, 1, 2, 3}},
                       .detail = "ho"};
    CHECK_EQ(cc__delta_pack(&delta, out), sizeof epoch);
    CHECK(memcmp(out, epoch, sizeof epoch) == 0);
    for (uint32_t i = 0; i < 16; i++)
        CHECK(cc__delta_stays(&delta, i) == (i == 0 || i == 2 || i == 8));
    passed++;
}

int main(void) {
    test_round_trip();
    test_lengths();
    test_flipped_bits();
    test_random_bytes();
    test_layouts();
    printf("test_wire_dispatch: %d passed, 0 failed\n", passed);
    return 0;
}
