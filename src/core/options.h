/* options.h - MALLOC_ARENA_OPTIONS, read once: "key=value,key=value". */
#ifndef MA_OPTIONS_H
#define MA_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

struct ma_options
{
#define WORD(key, initial, words, help) unsigned key;
#define SIZE(key, initial, least, most, help) size_t key;
#include "options.def"
#undef WORD
#undef SIZE
};

enum
{
  MA_ACTIVE_NONE = 1,
  MA_ACTIVE_SECURE,
  MA_ACTIVE_DEFAULT
};
enum
{
  MA_ON = 1,      /* of verify */
  MA_SYNC = 1,    /* of tag_check */
  MA_INHERIT = 2, /* of inherit */
  MA_VERBOSE = 2
};

/* The options, parsed at the first call. A key or value that is not in the table ends the program:
 * a protection that was asked for and misspelt must not be missing. Ignored in set-uid programs. */
const struct ma_options *ma_options (void);

#endif
