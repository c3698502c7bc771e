/* Every frame that crosses a link: its layout, and the checks that need no state. All frames open
 * with the same 64-byte header, little endian. See docs/protocol.md.
 *
 * Whether a frame fits the operation it names is not decided here but by what the operation's plan
 * expects (csrc/op/op.c): lengths are compared there, never believed. */
#ifndef CC_WIRE_H
#define CC_WIRE_H

#include "csrc/collectives.h"

#define CC_HEADER_BYTES 64

typedef enum cc__frame_type {
    CC__BEAT = 1,  /* I live */
    CC__INSTALLED, /* I have installed this epoch; my lanes are at its start */
    CC__READY,     /* I have posted this operation: its bulk data may come */
    CC__EAGER,     /* an operation's data, on stream 0 */
    CC__DATA,      /* an operation's data, on a bulk stream */
    CC__VOTE,      /* I am done with all operations of this lane up to this one */
    CC__ABORT,     /* I have sealed this epoch; payload: cc__abort_payload */
    CC__BYE,       /* I close this group; 0: all of them */
    CC__OFFER,     /* point to point: I have a message for you; with its data, if that is short */
    CC__ACCEPT,    /* its data may come */
    CC__TAKEN,     /* I have it, or do not want it */
    CC__CANCEL,    /* I give it up: answer TAKEN */
    CC__PIECE,     /* its data, on a bulk stream */
    CC__SEALED,    /* what I froze when I sealed this epoch; payload: dispatch.h */
    CC__EPOCH,     /* the record of this epoch, which you have not installed; as above */
    CC__SESSION,   /* opens a connection: the session that I know, and what I have of it */
    CC__RESUME,    /* of this data I have these segments, after a connection was made anew */
    CC__RESUMED,   /* that was all: what is missing may be sent again */
} cc__frame_type;

#define CC__READY_ASKS 1u   /* a READY's slot: have you posted it, too? */
#define CC__FINAL 1u        /* it is not begun again after a failure */
#define CC__WHOLE 2u        /* no rank may be without a member */
#define CC__BYTE_BARRIER 4u /* the all_reduce that a whole barrier is */

/* What an operation is: equal on all members, or the call is an error on all of them. */
typedef struct cc__signature {
    uint8_t kind, dtype, op, algorithm;
    uint32_t root; /* a rank */
    uint64_t count;
    uint64_t digest; /* of the counts of uneven blocks; 0: even */
    uint16_t flags;  /* CC__FINAL, CC__WHOLE, CC__BYTE_BARRIER */
} cc__signature;

/* A number that differs where signatures differ, but for one chance in 2^64. Never 0. */
uint64_t cc__signature_hash(const cc__signature *signature);
/* A digest of `n` counts, never 0. */
uint64_t cc__counts_digest(const uint64_t *counts, uint32_t n);
int cc__signature_equal(const cc__signature *a, const cc__signature *b);
/* "all_reduce(float32, sum, count=12)" to `out`. Any bytes are fine: it may come off the wire. */
void cc__signature_text(const cc__signature *signature, char *out, size_t size);

/* Stream 0 carries every type but DATA and PIECE, a bulk stream carries those alone. */
typedef struct cc__frame {
    uint8_t type; /* cc__frame_type */
    uint8_t lane;
    uint16_t slot; /* EAGER, DATA: which message of this pair in the operation's plan; READY:
                      CC__READY_ASKS or 0 */
    uint32_t group;
    uint32_t length; /* bytes of payload behind the header */
    uint64_t epoch;
    uint64_t sequence; /* the operation, or message; VOTE: the watermark; BEAT, SESSION: bytes of
                          frames received */
    uint64_t offset; /* EAGER, DATA, PIECE: of the payload in its message; READY: bytes expected of
                          the receiver; VOTE: a boundary's wishes; TAKEN: a cc_status; RESUME,
                          RESUMED: the number of the dial */
    cc__signature signature; /* READY, EAGER, DATA, VOTE: of the operation that `sequence` names */
} cc__frame;

void cc__frame_pack(const cc__frame *frame, uint8_t out[CC_HEADER_BYTES]);

/* CC_PROTOCOL: no frame that may come on such a stream. Afterwards type, lane and length are within
 * bounds for that type. */
cc_status cc__frame_unpack(const uint8_t in[CC_HEADER_BYTES], int bulk, uint32_t segment_bytes,
                           cc__frame *out);

#define CC__ABORT_BYTES 24
typedef struct cc__abort_payload {
    cc_peer_id suspect;
    uint32_t evidence; /* cc_evidence_kind, 0: none */
    uint32_t cause;    /* cc_cause */
} cc__abort_payload;

void cc__abort_pack(const cc__abort_payload *payload, uint8_t out[CC__ABORT_BYTES]);
cc_status cc__abort_unpack(const uint8_t in[CC__ABORT_BYTES], cc__abort_payload *out);

#endif
