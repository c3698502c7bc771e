/* Reports and records that members carry for each other over the data links, because the agents
 * that else do are threads of interpreters, which may be busy for seconds. docs/protocol.md section 6.
 *
 * A member whose report nobody has answered for a while sends it to others; their agents hand it on.
 * A member that has installed the record of a failure tells those that have not, and they install
 * it. All calls are made under the context's lock. */
#ifndef CC_DISPATCH_H
#define CC_DISPATCH_H

#include "csrc/link/link.h"
#include "csrc/wire/dispatch.h"

struct cc__group;

/* Another member's report. */
typedef struct cc__letter {
    uint64_t epoch;
    bool due; /* the own agent has not taken it yet */
    uint32_t length;
    uint8_t bytes[]; /* a valid SEALED payload */
} cc__letter;

typedef struct cc__dispatch {
    int64_t report_ns;     /* when the own report is due for others; only while sealed */
    bool reported;         /* they had it once */
    int64_t record_ns;     /* when the present record is due for who has not installed it */
    uint32_t record_bytes; /* 0: it is not the record of a failure in the epoch before */
    uint8_t record[CC__EPOCH_BYTES_MAX];
    cc__letter **letters; /* by member; NULL: none has written */
    bool letters_due;     /* for the context: some letter is due, */
    bool told_due;        /* another member told of the present epoch: an event, */
    bool told;            /* and work for the context itself */
} cc__dispatch;

/* The epoch was sealed just now, or there is more evidence. */
void cc__dispatch_sealed(struct cc__group *group);
void cc__dispatch_evidence(struct cc__group *group);
/* Before a record is installed over the present one: keeps what others may have to be told. */
void cc__dispatch_keep(struct cc__group *group, const cc_epoch *record);
/* The members change, or the group is freed. */
void cc__dispatch_forget(struct cc__group *group);
/* Sends what is due; returns when the next thing will be. */
int64_t cc__dispatch_tick(struct cc__group *group, int64_t now);

bool cc__dispatch_is_frame(const cc__frame *frame);
/* A SEALED or EPOCH frame is complete; its payload is in the channel's scratch. */
void cc__dispatch_on_payload(struct cc__group *group, uint32_t member, const cc__channel *channel);

/* Fills in the event of a letter that is due; false: there is none. */
bool cc__dispatch_take(struct cc__group *group, cc_event *out);
/* As cc_record. */
cc_status cc__dispatch_record(const struct cc__group *group, cc_epoch *out, cc_member *members,
                              uint32_t room, cc_outcome *lanes, char *detail);

#endif
