/* Goal: frames survive the way to bytes and back, and nothing else is taken for a frame.
 * Method: the layout by hand from docs/protocol.md section 3; every type, lane, kind of stream and
 * length around each bound against a table written down here; random bytes. */
#include "csrc/base/limits.h"
#include "csrc/wire/dispatch.h"
#include "csrc/wire/wire.h"
#include "tests/c/check.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int passed;
static uint64_t state = 20240607; /* the seed of all chance here */

static uint64_t draw(void) {
    uint64_t z = (state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* ---- what is allowed: the table of docs/protocol.md ----------------------------------------- */

static const struct {
    uint8_t type;
    int bulk;
    uint32_t least, most; /* of the payload; UINT32_MAX: a segment */
} ALLOWED[] = {
    {CC__BEAT, 0, 0, 0},
    {CC__INSTALLED, 0, 0, 0},
    {CC__READY, 0, 0, 0},
    {CC__VOTE, 0, 0, 0},
    {CC__EAGER, 0, 1, 16384},
    {CC__ABORT, 0, 24, 24},
    {CC__BYE, 0, 0, 0},
    {CC__DATA, 1, 1, UINT32_MAX},
    {CC__OFFER, 0, 0, 16384},
    {CC__ACCEPT, 0, 0, 0},
    {CC__TAKEN, 0, 0, 0},
    {CC__CANCEL, 0, 0, 0},
    {CC__PIECE, 1, 1, UINT32_MAX},
    {CC__SEALED, 0, 24, 10263}, /* 16 lanes with 64 calls, 64 pieces of evidence, 255 letters */
    {CC__EPOCH, 0, 48, 879},    /* 1024 members, 16 lanes, 255 letters */
    {CC__SESSION, 0, 0, 0},
    {CC__RESUME, 0, 1, 16384},
    {CC__RESUMED, 0, 0, 0},
};
#define N_ALLOWED (sizeof ALLOWED / sizeof ALLOWED[0])

static int is_allowed(uint8_t type, uint8_t lane, int bulk, uint32_t length, uint32_t segment) {
    for (size_t i = 0; i < N_ALLOWED; i++) {
        if (ALLOWED[i].type != type || ALLOWED[i].bulk != bulk) continue;
        uint32_t most = ALLOWED[i].most == UINT32_MAX ? segment : ALLOWED[i].most;
        return lane < 16 && length >= ALLOWED[i].least && length <= most;
    }
    return 0;
}

static int is_bulk(uint8_t type) {
    return type == CC__DATA || type == CC__PIECE;
}

static cc__frame any_frame(uint32_t segment) {
    size_t i = draw() % N_ALLOWED;
    uint32_t most = ALLOWED[i].most == UINT32_MAX ? segment : ALLOWED[i].most;
    return (cc__frame){
        .type = ALLOWED[i].type,
        .lane = (uint8_t)(draw() % 16),
        .slot = (uint16_t)draw(),
        .group = (uint32_t)draw(),
        .length = ALLOWED[i].least + (uint32_t)(draw() % (most - ALLOWED[i].least + 1)),
        .epoch = draw(),
        .sequence = draw(),
        .offset = draw(),
        .signature = {(uint8_t)draw(), (uint8_t)draw(), (uint8_t)draw(), (uint8_t)draw(),
                      (uint32_t)draw(), draw(), draw(), (uint16_t)draw()},
    };
}

static void check_same(const cc__frame *a, const cc__frame *b) {
    CHECK_EQ(a->type, b->type);
    CHECK_EQ(a->lane, b->lane);
    CHECK_EQ(a->slot, b->slot);
    CHECK_EQ(a->group, b->group);
    CHECK_EQ(a->length, b->length);
    CHECK_EQ(a->epoch, b->epoch);
    CHECK_EQ(a->sequence, b->sequence);
    CHECK_EQ(a->offset, b->offset);
    CHECK(cc__signature_equal(&a->signature, &b->signature));
}

static void test_layout(void) {
    const cc__frame frame = {
        .type = CC__DATA,
        .lane = 0x0b,
        .slot = 0x2122,
        .group = 0x41424344,
        .length = 0x00005152,
        .epoch = UINT64_C(0x6162636465666768),
        .sequence = UINT64_C(0x7172737475767778),
        .offset = UINT64_C(0x8182838485868788),
        .signature = {0x91, 0x92, 0x93, 0x94, 0xa1a2a3a4, UINT64_C(0xb1b2b3b4b5b6b7b8),
                      UINT64_C(0xc1c2c3c4c5c6c7c8), 0x3132},
    };
    static const uint8_t expected[64] = {
        0xcc, 0x01, 5,    0x0b, 0x22, 0x21, 0x32, 0x31, 0x44, 0x43, 0x42, 0x41, 0x52,
        0x51, 0,    0,    0x68, 0x67, 0x66, 0x65, 0x64, 0x63, 0x62, 0x61, 0x78, 0x77,
        0x76, 0x75, 0x74, 0x73, 0x72, 0x71, 0x88, 0x87, 0x86, 0x85, 0x84, 0x83, 0x82,
        0x81, 0x91, 0x92, 0x93, 0x94, 0xa4, 0xa3, 0xa2, 0xa1, 0xb8, 0xb7, 0xb6, 0xb5,
        0xb4, 0xb3, 0xb2, 0xb1, 0xc8, 0xc7, 0xc6, 0xc5, 0xc4, 0xc3, 0xc2, 0xc1,
    };
    uint8_t bytes[CC_HEADER_BYTES];
    CHECK_EQ(sizeof bytes, sizeof expected);
    cc__frame_pack(&frame, bytes);
    for (size_t i = 0; i < sizeof bytes; i++) CHECK_EQ(bytes[i], expected[i]);
    passed++;
}

static void test_round_trip(void) {
    for (int i = 0; i < 100000; i++) {
        uint32_t segment = 64u << (draw() % 15);
        cc__frame frame = any_frame(segment), back;
        uint8_t bytes[CC_HEADER_BYTES];
        cc__frame_pack(&frame, bytes);
        memset(&back, 0xee, sizeof back);
        CHECK_EQ(cc__frame_unpack(bytes, is_bulk(frame.type), segment, &back), CC_OK);
        check_same(&frame, &back);
    }
    passed++;
}

/* Every type, lane and kind of stream, and each length at which something changes. */
static void test_every_header(void) {
    static const uint32_t segments[] = {64, 4096, 16384, CC_SEGMENT_MAX};
    for (size_t s = 0; s < sizeof segments / sizeof segments[0]; s++) {
        const uint32_t segment = segments[s];
        const uint32_t lengths[] = {0,       1,           23,         24,          25,
                                    47,      48,          879,        880,         10263,
                                    10264,   16383,       16384,      16385,       segment - 1,
                                    segment, segment + 1, 0x7fffffff, 0x80000000u, 0xffffffffu};
        for (int type = 0; type < 256; type++) {
            for (int lane = 0; lane < 256; lane++) {
                for (int bulk = 0; bulk < 2; bulk++) {
                    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
                        cc__frame frame = any_frame(segment), back;
                        frame.type = (uint8_t)type;
                        frame.lane = (uint8_t)lane;
                        frame.length = lengths[i];
                        uint8_t bytes[CC_HEADER_BYTES];
                        cc__frame_pack(&frame, bytes);
                        int ok = is_allowed(frame.type, frame.lane, bulk, frame.length, segment);
                        CHECK_EQ(cc__frame_unpack(bytes, bulk, segment, &back),
                                 ok ? CC_OK : CC_PROTOCOL);
                    }
                }
            }
        }
    }
    passed++;
}

/* A frame with one bit of its magic flipped is none. */
static void test_magic(void) {
    for (int bit = 0; bit < 16; bit++) {
        cc__frame frame = any_frame(4096), back;
        uint8_t bytes[CC_HEADER_BYTES];
        cc__frame_pack(&frame, bytes);
        bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        CHECK_EQ(cc__frame_unpack(bytes, is_bulk(frame.type), 4096, &back), CC_PROTOCOL);
    }
    passed++;
}

/* Whatever is taken for a frame is within bounds, and is those very bytes when packed again. */
static void test_random_bytes(void) {
    int taken = 0;
    for (int i = 0; i < 2000000; i++) {
        uint8_t bytes[CC_HEADER_BYTES], again[CC_HEADER_BYTES];
        for (size_t at = 0; at < sizeof bytes; at += 8) {
            uint64_t chance = draw();
            memcpy(bytes + at, &chance, 8);
        }
        if (i % 4) { /* nearly right, or chance alone would never get anywhere */
            bytes[0] = 0xcc;
            bytes[1] = 0x01;
            bytes[2] %= 16;
            bytes[3] %= 20;
            bytes[13] %= 0x50;
            bytes[14] = bytes[15] = 0;
        }
        int bulk = (int)(draw() % 2);
        cc__frame frame;
        cc_status status = cc__frame_unpack(bytes, bulk, 4096, &frame);
        if (status != CC_OK) {
            CHECK_EQ(status, CC_PROTOCOL);
            continue;
        }
        taken++;
        CHECK(is_allowed(frame.type, frame.lane, bulk, frame.length, 4096));
        CHECK(bytes[0] == 0xcc && bytes[1] == 0x01);
        cc__frame_pack(&frame, again);
        CHECK(memcmp(bytes, again, sizeof bytes) == 0);
    }
    CHECK(taken > 1000);
    passed++;
}

static void test_abort(void) {
    for (uint32_t evidence = 0; evidence < 300; evidence++) {
        for (uint32_t cause = 0; cause < 300; cause++) {
            cc__abort_payload payload = {.evidence = evidence, .cause = cause}, back;
            for (size_t i = 0; i < 16; i++) payload.suspect.bytes[i] = (uint8_t)draw();
            uint8_t bytes[CC__ABORT_BYTES];
            cc__abort_pack(&payload, bytes);
            /* A seal is evidence 0 (none) to 5; its cause is anything but FORMED. */
            int ok = evidence <= 5 && cause >= 2 && cause <= 6;
            CHECK_EQ(cc__abort_unpack(bytes, &back), ok ? CC_OK : CC_PROTOCOL);
            if (!ok) continue;
            CHECK(memcmp(&back.suspect, &payload.suspect, 16) == 0);
            CHECK(back.evidence == evidence && back.cause == cause);
        }
    }
    uint8_t ones[CC__ABORT_BYTES];
    memset(ones, 0xff, sizeof ones);
    cc__abort_payload back;
    CHECK_EQ(cc__abort_unpack(ones, &back), CC_PROTOCOL);
    passed++;
}

static void test_signature_equal(void) {
    const cc__signature one = {1, 2, 3, 4, 5, 6, 7, 8};
    CHECK(cc__signature_equal(&one, &one));
    for (int field = 0; field < 8; field++) {
        cc__signature other = one;
        other.kind += field == 0;
        other.dtype += field == 1;
        other.op += field == 2;
        other.algorithm += field == 3;
        other.root += field == 4;
        other.count += field == 5;
        other.digest += field == 6;
        other.flags += field == 7;
        CHECK(!cc__signature_equal(&one, &other));
        CHECK(cc__signature_hash(&one) != cc__signature_hash(&other));
    }
    cc__signature high = one;
    high.count |= UINT64_C(1) << 63;
    CHECK(!cc__signature_equal(&one, &high));
    passed++;
}

/* Which rank has which count is in the digest, not only how many there are. */
static void test_counts_digest(void) {
    const uint64_t counts[] = {3, 0, 5, 0}, swapped[] = {0, 3, 5, 0}, zeros[4] = {0};
    CHECK(cc__counts_digest(counts, 4) == cc__counts_digest(counts, 4));
    CHECK(cc__counts_digest(counts, 4) != cc__counts_digest(swapped, 4));
    CHECK(cc__counts_digest(counts, 4) != cc__counts_digest(counts, 3));
    CHECK(cc__counts_digest(zeros, 4) != cc__counts_digest(zeros, 3));
    CHECK(cc__counts_digest(zeros, 0) != 0);
    passed++;
}

/* Text for people, of any bytes, in any room: always ended, never beyond its end. */
static void test_signature_text(void) {
    char text[160];
    const cc__signature call = {CC_ALL_REDUCE, CC_FLOAT32, CC_SUM, CC_RING, 0, 12, 0, 0};
    cc__signature_text(&call, text, sizeof text);
    CHECK(strstr(text, "all_reduce") && strstr(text, "float32") && strstr(text, "sum"));
    CHECK(strstr(text, "12") && strstr(text, "ring"));
    const cc__signature cast = {CC_BROADCAST, CC_INT64, 0, CC_DIRECT, 3, UINT64_MAX, 0, 0};
    cc__signature_text(&cast, text, sizeof text);
    CHECK(strstr(text, "broadcast") && strstr(text, "int64") && strstr(text, "root=3"));
    CHECK(strstr(text, "18446744073709551615"));
    const cc__signature uneven = {CC_GATHER, CC_BOOL, 0, CC_DIRECT, 2, 40, 0x1234beef, CC__FINAL};
    cc__signature_text(&uneven, text, sizeof text);
    CHECK(strcmp(text, "gather(bool, root=2, count=40, uneven beef, algorithm=direct, no retry)") ==
          0);
    const cc__signature bare = {.kind = CC_BARRIER, .flags = CC__WHOLE | CC__FINAL};
    cc__signature_text(&bare, text, sizeof text);
    CHECK(strcmp(text, "barrier(whole, no retry)") == 0);
    for (int i = 0; i < 200000; i++) {
        cc__signature any = {(uint8_t)draw(),  (uint8_t)draw(), (uint8_t)draw(), (uint8_t)draw(),
                             (uint32_t)draw(), draw(),          draw(),          (uint16_t)draw()};
        if (i % 2) any.kind %= 16;
        if (i % 3) any.dtype %= 16;
        size_t room = 1 + draw() % 130;
        char *exact = malloc(room); /* so that a sanitizer sees a byte too many */
        CHECK(exact != NULL);
        cc__signature_text(&any, exact, room);
        CHECK(memchr(exact, 0, room) != NULL);
        free(exact);
    }
    passed++;
}

int main(void) {
    test_layout();
    test_round_trip();
    test_every_header();
    test_magic();
    test_random_bytes();
    test_abort();
    test_signature_equal();
    test_counts_digest();
    test_signature_text();
    printf("test_wire: %d passed, 0 failed\n", passed);
    return 0;
}
