/* What a group does once a link to a member was mended: the data that was under way on it is asked
 * for again. Control frames need nothing, for the link's session lost none.
 *
 * Both sides send RESUME for each message of which they have not all, then RESUMED; until then the
 * other one sends no data. So a segment never comes twice. All calls are made under the context's
 * lock. */
#ifndef CC_MEND_H
#define CC_MEND_H

#include "csrc/group/group.h"

void cc__group_on_mended(cc__group *group, cc__link *link);
/* A RESUME's payload is there. */
void cc__group_on_resume(cc__group *group, const cc__channel *channel);
void cc__group_on_resumed(cc__group *group, cc__link *link);

/* Says what an operation has of each message that `from` sends it. */
void cc__mend_ask(cc__group *group, cc__link *link, const cc__op *op, uint32_t from);

#endif
