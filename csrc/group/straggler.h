/* Whom an operation waits for: members that have not called it yet, and members that have and do not
 * move. Nobody's fault, and no evidence: it is told to people, and nothing is decided by it.
 *
 * A lane's operations end in order, so all of them wait for what the first open one waits for.
 * That one is looked at once a beat. If nothing of it has moved for the suspect time, all members are
 * asked whether they have posted it, by a READY that asks; a plan's neighbours alone would know.
 * docs/protocol.md section 4. All calls are made under the context's lock. */
#ifndef CC_STRAGGLER_H
#define CC_STRAGGLER_H

#include "csrc/op/op.h"

struct cc__group;
struct cc__lane;

/* A lane's first open operation, as it was seen last. Times leave out what this peer slept through,
 * as its detector's do. */
typedef struct cc__patience {
    uint64_t sequence; /* 0: none */
    uint64_t moved;    /* a sum of all that had moved, */
    int64_t moved_ns;  /* and since when it has not changed */
    bool asked;        /* all members were asked about it, */
    int64_t asked_ns;  /* then */
    int64_t tell_ns;   /* when the agent is to be told, the next time */
    bool due;          /* it is to be told now */
} cc__patience;

/* Looks at all lanes when it is time to; returns when it will be again. */
int64_t cc__stragglers_tick(struct cc__group *group, int64_t now);
/* Whether all members are asked about this operation: who has installed the epoch just now, too. */
bool cc__stragglers_asked(const struct cc__lane *lane, const cc__op *op);
/* Whom a lane waits for: writes up to `room`, by rank, and returns how many there are. They are all
 * late or all stalled, for while some are late the others wait for them, too. */
uint32_t cc__stragglers(const struct cc__group *group, const struct cc__lane *lane,
                        cc_straggler *out, uint32_t room);
/* The same for people, to follow an operation: "; rank 2 had not called it". "": nobody is known. */
void cc__stragglers_text(const struct cc__group *group, const struct cc__lane *lane,
                         const cc__op *op, char *out, size_t size);
/* Fills in the event of a lane that is due; false: there is none. */
bool cc__stragglers_take(struct cc__group *group, cc_event *out);

#endif
