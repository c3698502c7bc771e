/* The hello that opens every stream, as bytes, and what each side makes of the other's. Pure: no
 * socket, no memory, no time. So it is shared by all transports, and any bytes may be thrown at it.
 *
 * The dialling side sends a hello; the listening side judges it and answers with one of its own
 * that carries a status. Magic and version come first and keep their place in every version, so
 * that two versions can tell each other apart without knowing each other's hello. */
#ifndef CC_TRANSPORT_HANDSHAKE_H
#define CC_TRANSPORT_HANDSHAKE_H

#include "transport/transport.h"

#define CC__HELLO_BYTES 80
#define CC__HELLO_PREFIX_BYTES 8 /* magic and version */

/* Without the role, something that echoes what it gets would look like a peer. */
typedef enum cc__hello_role {
    CC__HELLO_DIAL = 1,
    CC__HELLO_ANSWER = 2,
    CC__HELLO_RELAY = 3, /* a dial of `to` that whoever gets it is to pass on, as a plain dial */
} cc__hello_role;

/* What the listening side checks a hello against. */
typedef struct cc__hello_rules {
    cc_peer_id id;
    int has_token; /* without a token every hello is turned away */
    uint8_t token[16];
    uint32_t streams;
    uint32_t segment_bytes;
} cc__hello_rules;

/* `status` is CC_OK in a dial. */
void cc__hello_pack(const cc_hello *hello, cc__hello_role role, cc_status status,
                    uint8_t out[CC__HELLO_BYTES]);

/* Looks at the first bytes that came in. CC_PENDING: fine as far as they go, but fewer than the
 * prefix. CC_OK: our magic and version. CC_PROTOCOL: our magic, another version. CC_INVALID: no
 * hello at all. */
cc_status cc__hello_check_prefix(const uint8_t *in, size_t bytes);

/* CC_PROTOCOL: not a hello of that role and our version. `status` (may be NULL for a dial) is one
 * that an answer may carry: CC_OK, CC_EVICTED, CC_PROTOCOL or CC_BUSY; a relay's also CC_REFUSED or
 * CC_UNREACHABLE. */
cc_status cc__hello_unpack(const uint8_t in[CC__HELLO_BYTES], cc__hello_role role, cc_hello *out,
                           cc_status *status);

/* The listening side's verdict on a dial, or on one to be relayed. CC_EVICTED: it knows another
 * token, or means another incarnation. CC_PROTOCOL: other stream settings. */
cc_status cc__hello_judge(const cc__hello_rules *rules, cc__hello_role role, const cc_hello *dial);

/* The listening side's answer to `dial`, which may be NULL if it could not be read. The token is
 * in it only if the verdict is CC_OK, or a relay's CC_REFUSED, which must be believed: only then
 * the other side has shown that it knows it. */
void cc__hello_answer(const cc__hello_rules *rules, const cc_hello *dial, cc_status verdict,
                      uint8_t out[CC__HELLO_BYTES]);

/* The dialling side's verdict on the answer to its dial of that role: CC_OK, CC_EVICTED, CC_BUSY or
 * CC_PROTOCOL. To a dial that is to be relayed also CC_REFUSED, from a relay that has the token,
 * and never CC_EVICTED, which is CC_UNREACHABLE then: who says it may be no relay of this run. */
cc_status cc__hello_confirm(cc__hello_role role, const cc_hello *dial,
                            const uint8_t answer[CC__HELLO_BYTES]);

/* What a failed dial of that role says of the peer that was meant. That nobody listens at a relay's
 * address, or a stranger does, proves nothing of the peer behind it. */
static inline cc_status cc__hello_failure(cc__hello_role role, cc_status status) {
    int of_the_relay = role == CC__HELLO_RELAY && (status == CC_REFUSED || status == CC_EVICTED);
    return of_the_relay ? CC_UNREACHABLE : status;
}

#endif
