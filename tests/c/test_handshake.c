/* The hello as bytes: what is packed comes out again, the layout is the one that is written down,
 * every verdict is reached by the change that asks for it, and no bytes at all do harm. */
#include "tests/c/check.h"
#include "transport/handshake.h"

#include <string.h>

static int passed;

static cc_hello example(void) {
    cc_hello hello = {
        .stream = 3, .streams = 4, .segment_bytes = 65536, .link = 0x1122334455667788};
    for (int i = 0; i < 16; i++) {
        hello.from.bytes[i] = (uint8_t)(0x10 + i);
        hello.to.bytes[i] = (uint8_t)(0x30 + i);
        hello.token[i] = (uint8_t)(0x50 + i);
    }
    return hello;
}

static cc__hello_rules rules_for(const cc_hello *hello) {
    cc__hello_rules rules = {.id = hello->to, .has_token = 1, .streams = 4, .segment_bytes = 65536};
    memcpy(rules.token, hello->token, 16);
    return rules;
}

/* Written by hand from the table in handshake.c: peers of other builds rely on it. */
static void the_layout_is_fixed(void) {
    static const uint8_t want[32] = {'C', 'C', 'H',  'I',  1,    0,    0,    0,    1,    0,   0,
                                     0,   3,   0,    4,    0,    0,    0,    1,    0,    0,   0,
                                     0,   0,   0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11};
    uint8_t bytes[CC__HELLO_BYTES];
    cc_hello hello = example();
    cc__hello_pack(&hello, CC__HELLO_DIAL, CC_OK, bytes);
    CHECK(memcmp(bytes, want, sizeof want) == 0);
    CHECK(bytes[32] == 0x10 && bytes[47] == 0x1f && bytes[48] == 0x30 && bytes[63] == 0x3f);
    CHECK(bytes[64] == 0x50 && bytes[79] == 0x5f);
    passed++;
}

static void what_goes_in_comes_out(void) {
    uint8_t bytes[CC__HELLO_BYTES];
    cc_hello hello = example(), got;
    cc_status status = CC_SYSTEM;
    memset(&got, 0xee, sizeof got);
    cc__hello_pack(&hello, CC__HELLO_ANSWER, CC_EVICTED, bytes);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_ANSWER, &got, &status), CC_OK);
    CHECK_EQ(status, CC_EVICTED);
    CHECK(got.link == hello.link && got.stream == 3 && got.streams == 4);
    CHECK_EQ(got.segment_bytes, 65536);
    CHECK(memcmp(&got.from, &hello.from, 16) == 0 && memcmp(&got.to, &hello.to, 16) == 0);
    CHECK(memcmp(got.token, hello.token, 16) == 0);
    passed++;
}

static void prefixes(void) {
    uint8_t bytes[CC__HELLO_BYTES];
    cc_hello hello = example();
    cc__hello_pack(&hello, CC__HELLO_DIAL, CC_OK, bytes);
    for (size_t i = 0; i < CC__HELLO_PREFIX_BYTES; i++)
        CHECK_EQ(cc__hello_check_prefix(bytes, i), CC_PENDING);
    CHECK_EQ(cc__hello_check_prefix(bytes, CC__HELLO_PREFIX_BYTES), CC_OK);
    CHECK_EQ(cc__hello_check_prefix((const uint8_t *)"GET / HTTP", 3), CC_INVALID);
    CHECK_EQ(cc__hello_check_prefix((const uint8_t *)"CCHX", 4), CC_INVALID);
    bytes[4] = 2;
    CHECK_EQ(cc__hello_check_prefix(bytes, 7), CC_PENDING);
    CHECK_EQ(cc__hello_check_prefix(bytes, 8), CC_PROTOCOL);
    passed++;
}

/* An own hello that is echoed is no answer, and an answer is no dial. */
static void roles_and_statuses(void) {
    uint8_t bytes[CC__HELLO_BYTES];
    cc_hello hello = example(), got;
    cc_status status;
    cc__hello_pack(&hello, CC__HELLO_DIAL, CC_OK, bytes);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_ANSWER, &got, &status), CC_PROTOCOL);
    CHECK_EQ(cc__hello_confirm(CC__HELLO_DIAL, &hello, bytes), CC_PROTOCOL);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_DIAL, &got, NULL), CC_OK);
    cc__hello_pack(&hello, CC__HELLO_DIAL, CC_EVICTED, bytes);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_DIAL, &got, NULL), CC_PROTOCOL);
    cc__hello_pack(&hello, CC__HELLO_RELAY, CC_OK, bytes);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_DIAL, &got, NULL), CC_PROTOCOL);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_ANSWER, &got, &status), CC_PROTOCOL);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_RELAY, &got, NULL), CC_OK);
    cc__hello_pack(&hello, CC__HELLO_RELAY, CC_REFUSED, bytes);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_RELAY, &got, NULL), CC_PROTOCOL);
    for (int said = 0; said < 40; said++) {
        cc__hello_pack(&hello, CC__HELLO_ANSWER, (cc_status)said, bytes);
        int known = said == CC_OK || said == CC_EVICTED || said == CC_PROTOCOL || said == CC_BUSY ||
                    said == CC_REFUSED || said == CC_UNREACHABLE;
        CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_ANSWER, &got, &status),
                 known ? CC_OK : CC_PROTOCOL);
    }
    passed++;
}

static void verdicts(void) {
    cc_hello good = example(), bad;
    cc__hello_rules rules = rules_for(&good);
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_DIAL, &good), CC_OK);
    for (int i = 0; i < 16; i++) {
        bad = good;
        bad.token[i] ^= 0x80;
        CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_DIAL, &bad), CC_EVICTED);
        bad = good;
        bad.to.bytes[i] ^= 0x80;
        CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_DIAL, &bad), CC_EVICTED);
    }
    bad = good;
    bad.streams = 5;
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_DIAL, &bad), CC_PROTOCOL);
    bad = good;
    bad.stream = 5;
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_DIAL, &bad), CC_PROTOCOL);
    bad = good;
    bad.segment_bytes++;
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_DIAL, &bad), CC_PROTOCOL);
    rules.has_token = 0;
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_DIAL, &good), CC_BUSY);
    passed++;
}

static void answers(void) {
    uint8_t bytes[CC__HELLO_BYTES];
    cc_hello dial = example(), other;
    cc__hello_rules rules = rules_for(&dial);
    cc__hello_answer(&rules, &dial, CC_OK, bytes);
    CHECK_EQ(cc__hello_confirm(CC__HELLO_DIAL, &dial, bytes), CC_OK);
    other = dial;
    other.link++;
    CHECK_EQ(cc__hello_confirm(CC__HELLO_DIAL, &other, bytes), CC_PROTOCOL);
    other = dial;
    other.stream--;
    CHECK_EQ(cc__hello_confirm(CC__HELLO_DIAL, &other, bytes), CC_PROTOCOL);
    other = dial;
    other.to.bytes[7]++;
    CHECK_EQ(cc__hello_confirm(CC__HELLO_DIAL, &other, bytes), CC_EVICTED);
    other = dial;
    other.token[0]++;
    CHECK_EQ(cc__hello_confirm(CC__HELLO_DIAL, &other, bytes), CC_EVICTED);

    /* Who is turned away is told why, but never our token. */
    cc_status verdicts[] = {CC_EVICTED, CC_PROTOCOL};
    for (int i = 0; i < 2; i++) {
        cc__hello_answer(&rules, i ? NULL : &dial, verdicts[i], bytes);
        CHECK_EQ(cc__hello_confirm(CC__HELLO_DIAL, &dial, bytes), verdicts[i]);
        for (int k = 64; k < 80; k++) CHECK_EQ(bytes[k], 0);
    }
    passed++;
}

/* A relay judges everything but who is meant. */
static void verdicts_of_a_relay(void) {
    cc_hello good = example(), bad = good;
    cc__hello_rules rules = rules_for(&good);
    memset(rules.id.bytes, 0x99, sizeof rules.id.bytes);
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_DIAL, &good), CC_EVICTED);
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_RELAY, &good), CC_OK);
    bad.token[3] ^= 1;
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_RELAY, &bad), CC_EVICTED);
    bad = good;
    bad.streams++;
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_RELAY, &bad), CC_PROTOCOL);
    rules.has_token = 0;
    CHECK_EQ(cc__hello_judge(&rules, CC__HELLO_RELAY, &good), CC_BUSY);
    passed++;
}

/* What the dialling side makes of an answer to a dial through a relay: the target's own is good, and
 * only a relay that has the token may say that the target refused. */
static void answers_through_a_relay(void) {
    static const cc_status said[][2] = {
        {CC_OK, CC_UNREACHABLE}, /* from the wrong one */
        {CC_EVICTED, CC_UNREACHABLE}, {CC_PROTOCOL, CC_PROTOCOL},      {CC_BUSY, CC_BUSY},
        {CC_REFUSED, CC_REFUSED},     {CC_UNREACHABLE, CC_UNREACHABLE}};
    uint8_t bytes[CC__HELLO_BYTES];
    cc_hello dial = example(), other = dial;
    cc__hello_rules target = rules_for(&dial), relay = target;
    cc__hello_answer(&target, &dial, CC_OK, bytes);
    CHECK_EQ(cc__hello_confirm(CC__HELLO_RELAY, &dial, bytes), CC_OK);
    memset(relay.id.bytes, 0x99, sizeof relay.id.bytes);
    for (size_t i = 0; i < sizeof said / sizeof said[0]; i++) {
        cc__hello_answer(&relay, &dial, said[i][0], bytes);
        CHECK_EQ(cc__hello_confirm(CC__HELLO_RELAY, &dial, bytes), said[i][1]);
    }
    cc__hello_answer(&relay, &dial, CC_REFUSED, bytes);
    CHECK_EQ(cc__hello_confirm(CC__HELLO_DIAL, &dial, bytes), CC_PROTOCOL); /* nobody asked it */
    for (int i = 0; i < 16; i++) {
        cc__hello_answer(&relay, &dial, CC_REFUSED, bytes);
        bytes[64 + i] ^= 4;
        CHECK_EQ(cc__hello_confirm(CC__HELLO_RELAY, &dial, bytes), CC_UNREACHABLE);
    }
    other.link--;
    cc__hello_answer(&relay, &dial, CC_REFUSED, bytes);
    CHECK_EQ(cc__hello_confirm(CC__HELLO_RELAY, &other, bytes), CC_UNREACHABLE);
    passed++;
}

/* All bytes but those of a valid hello must be refused or give a hello that packs to the same. */
static void any_bytes_are_harmless(void) {
    uint8_t bytes[CC__HELLO_BYTES], again[CC__HELLO_BYTES];
    uint64_t random = 88172645463325252u;
    cc_hello dial = example(), got;
    cc_status status;
    for (int i = 0; i < 200000; i++) {
        cc__hello_pack(&dial, (cc__hello_role)(1 + i % 3), CC_OK, bytes);
        for (int k = 0; k <= i % 5; k++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            bytes[random % CC__HELLO_BYTES] = (uint8_t)(random >> 32);
        }
        cc__hello_role role = (cc__hello_role)(1 + (random >> 40) % 3);
        cc__hello_confirm(random >> 63 ? CC__HELLO_DIAL : CC__HELLO_RELAY, &dial, bytes);
        if (cc__hello_unpack(bytes, role, &got, &status) != CC_OK) continue;
        cc__hello_pack(&got, role, status, again);
        CHECK(memcmp(bytes, again, sizeof bytes) == 0);
    }
    passed++;
}

int main(void) {
    the_layout_is_fixed();
    what_goes_in_comes_out();
    prefixes();
    roles_and_statuses();
    verdicts();
    answers();
    verdicts_of_a_relay();
    answers_through_a_relay();
    any_bytes_are_harmless();
    printf("test_handshake: %d passed, 0 failed\n", passed);
    return 0;
}
