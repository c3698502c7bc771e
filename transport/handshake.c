/* The hello, 80 bytes, little endian:
 *
 *    0  magic "CCHI"       12  stream, streams (16 bits each)    32  from
 *    4  protocol version   16  segment bytes                     48  to
 *    8  role, status       20  zero                              64  token
 *       (16 bits each)     24  link
 *
 * Tokens are compared without an early exit, so that the time it takes does not tell how much of a
 * guess was right. */
#include "transport/handshake.h"

#include <string.h>

static const uint8_t magic[4] = {'C', 'C', 'H', 'I'};

static void put(uint8_t *out, int bytes, uint64_t value) {
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *in, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)in[i] << (8 * i);
    return value;
}

static int same_id(const cc_peer_id *a, const cc_peer_id *b) {
    return memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

static int same_token(const uint8_t a[16], const uint8_t b[16]) {
    uint8_t difference = 0;
    for (int i = 0; i < 16; i++) difference |= a[i] ^ b[i];
    return difference == 0;
}

void cc__hello_pack(const cc_hello *hello, cc__hello_role role, cc_status status,
                    uint8_t out[CC__HELLO_BYTES]) {
    memcpy(out, magic, 4);
    put(out + 4, 4, CC_PROTOCOL_VERSION);
    put(out + 8, 2, (uint64_t)role);
    put(out + 10, 2, (uint64_t)status);
    put(out + 12, 2, hello->stream);
    put(out + 14, 2, hello->streams);
    put(out + 16, 4, hello->segment_bytes);
    put(out + 20, 4, 0);
    put(out + 24, 8, hello->link);
    memcpy(out + 32, hello->from.bytes, 16);
    memcpy(out + 48, hello->to.bytes, 16);
    memcpy(out + 64, hello->token, 16);
}

cc_status cc__hello_check_prefix(const uint8_t *in, size_t bytes) {
    size_t known = bytes < sizeof magic ? bytes : sizeof magic;
    if (memcmp(in, magic, known) != 0) return CC_INVALID;
    if (bytes < CC__HELLO_PREFIX_BYTES) return CC_PENDING;
    return get(in + 4, 4) == CC_PROTOCOL_VERSION ? CC_OK : CC_PROTOCOL;
}

static int may_answer(uint64_t said) {
    return said == CC_EVICTED || said == CC_PROTOCOL || said == CC_BUSY || said == CC_REFUSED ||
           said == CC_UNREACHABLE;
}

cc_status cc__hello_unpack(const uint8_t in[CC__HELLO_BYTES], cc__hello_role role, cc_hello *out,
                           cc_status *status) {
    if (cc__hello_check_prefix(in, CC__HELLO_BYTES) != CC_OK || get(in + 8, 2) != (uint64_t)role ||
        get(in + 20, 4) != 0)
        return CC_PROTOCOL;
    uint64_t said = get(in + 10, 2);
    if (said != CC_OK && (role != CC__HELLO_ANSWER || !may_answer(said))) return CC_PROTOCOL;
    if (status) *status = (cc_status)said;
    out->stream = (uint16_t)get(in + 12, 2);
    out->streams = (uint16_t)get(in + 14, 2);
    out->segment_bytes = (uint32_t)get(in + 16, 4);
    out->link = get(in + 24, 8);
    memcpy(out->from.bytes, in + 32, 16);
    memcpy(out->to.bytes, in + 48, 16);
    memcpy(out->token, in + 64, 16);
    return CC_OK;
}

cc_status cc__hello_judge(const cc__hello_rules *rules, cc__hello_role role, const cc_hello *dial) {
    if (!rules->has_token) return CC_BUSY; /* it cannot tell yet */
    if (!same_token(rules->token, dial->token)) return CC_EVICTED;
    if (role == CC__HELLO_DIAL && !same_id(&rules->id, &dial->to)) return CC_EVICTED;
    if (dial->streams != rules->streams ||
        (dial->stream > dial->streams && dial->stream != CC_HELLO_PROBE) ||
        dial->segment_bytes != rules->segment_bytes)
        return CC_PROTOCOL;
    return CC_OK;
}

void cc__hello_answer(const cc__hello_rules *rules, const cc_hello *dial, cc_status verdict,
                      uint8_t out[CC__HELLO_BYTES]) {
    cc_hello answer;
    memset(&answer, 0, sizeof answer);
    if (dial) {
        answer = *dial;
        answer.to = dial->from;
    }
    answer.from = rules->id;
    answer.streams = (uint16_t)rules->streams;
    answer.segment_bytes = rules->segment_bytes;
    if (verdict == CC_OK || verdict == CC_REFUSED)
        memcpy(answer.token, rules->token, sizeof answer.token);
    else
        memset(answer.token, 0, sizeof answer.token);
    cc__hello_pack(&answer, CC__HELLO_ANSWER, verdict, out);
}

static cc_status confirm(const cc_hello *dial, const cc_hello *answer) {
    if (!same_id(&answer->from, &dial->to) || !same_id(&answer->to, &dial->from) ||
        !same_token(answer->token, dial->token))
        return CC_EVICTED;
    if (answer->link != dial->link || answer->stream != dial->stream ||
        answer->streams != dial->streams || answer->segment_bytes != dial->segment_bytes)
        return CC_PROTOCOL;
    return CC_OK;
}

/* A refusal proves a death, so it must come from one of this run, and be meant for this dial. */
static int is_relays_word(const cc_hello *dial, const cc_hello *answer) {
    return same_token(answer->token, dial->token) && same_id(&answer->to, &dial->from) &&
           answer->link == dial->link && answer->stream == dial->stream;
}

cc_status cc__hello_confirm(cc__hello_role role, const cc_hello *dial,
                            const uint8_t in[CC__HELLO_BYTES]) {
    cc_hello answer;
    cc_status status = CC_PROTOCOL;
    if (cc__hello_unpack(in, CC__HELLO_ANSWER, &answer, &status) != CC_OK) return CC_PROTOCOL;
    if (status == CC_REFUSED || status == CC_UNREACHABLE) {
        if (role != CC__HELLO_RELAY) return CC_PROTOCOL;
        return status == CC_REFUSED && is_relays_word(dial, &answer) ? CC_REFUSED : CC_UNREACHABLE;
    }
    if (status == CC_OK) status = confirm(dial, &answer);
    return cc__hello_failure(role, status);
}
