/* fatal.h - the end of a program that misused an arena: one stable line, then abort().
 *
 * The lines are an interface: programs and tests compare them. They are written with write(2), from
 * any state, and allocate nothing.
 */
#ifndef MA_FATAL_H
#define MA_FATAL_H

#include <stddef.h>

/* "malloc_arena: CRIME: 0xP (arena "NAME")", or "(no arena)" where NAME is NULL. */
_Noreturn void ma_fatal_block (const char *crime, const void *p, const char *name);

/* "malloc_arena: " and the parts, up to a NULL, in one write. */
_Noreturn void ma_fatal (const char *part, ...) __attribute__ ((sentinel));
/* The same line, and life goes on. */
void ma_warn (const char *part, ...) __attribute__ ((sentinel));

/* N in decimal, into TEXT of at least 24 bytes. Returns TEXT. */
char *ma_decimal (char *text, size_t n);

#endif
