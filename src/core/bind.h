/* bind.h - whose routine is it: the check behind malloc_arena (arena, routine, ...).
 *
 * A block that another implementation's free gets is corruption at a distance. So a routine is
 * called with an arena active only when it ends in this library's malloc, and when this process's
 * free is this library's too. The question is which object DEFINES the routine: the address a
 * program sees may be an entry of its own PLT.
 */
#ifndef MA_BIND_H
#define MA_BIND_H

/* Aborts, naming both shared objects, unless ROUTINE and the process's free are ours. */
void ma_bind_check (void (*routine) (void));

/* Whether the code at A and at B is the same object's. */
int ma_bind_together (const void *a, const void *b);

#endif
