/* The transports by name. A new one joins with a declaration and a line in the table. */
#include "transport/transport.h"

#include <string.h>

extern const cc_transport_ops cc__transport_tcp;
/* Weak: a program that needs no simulation may be linked without it. */
extern const cc_transport_ops cc__transport_sim __attribute__((weak));

const cc_transport_ops *cc_transport_find(const char *name) {
    const cc_transport_ops *const all[] = {&cc__transport_tcp, &cc__transport_sim};
    for (size_t i = 0; name && i < sizeof all / sizeof all[0]; i++)
        if (all[i] && strcmp(all[i]->name, name) == 0) return all[i];
    return NULL;
}
