/* options.c - a fuzzer of the parser of MALLOC_ARENA_OPTIONS, held against one that is written another
 * way: the same texts are refused, and the same values come out of the others.
 *
 * The parser is compiled into this file, with a fatal line that does not end the program. With libFuzzer:
 * tests/c/fuzz_options, with fuzz/corpus-options as seeds; see sequence.c. */
#define secure_getenv getenv
#include "../src/core/options.c"

#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#define CHECK(condition)                                                                           \
  do                                                                                               \
    {                                                                                              \
      if (!(condition))                                                                            \
        {                                                                                          \
          fprintf (stderr, "options: not so: %s\n", #condition);                                   \
          abort ();                                                                                \
        }                                                                                          \
    }                                                                                              \
  while (0)

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

static jmp_buf refused;

void
ma_fatal (const char *part, ...)
{
  va_list parts;
  size_t length = 0;
  CHECK (strcmp (part, "bad option: ") == 0);
  va_start (parts, part);
  for (; part != NULL; part = va_arg (parts, const char *))
    length += strlen (part);
  va_end (parts);
  CHECK (length < 600);
  longjmp (refused, 1);
}

char *
ma_decimal (char *out, size_t value)
{
  snprintf (out, 24, "%zu", value);
  return out;
}

/* ---- the other parser ---- */

static const struct option
{
  const char *key;
  const char *words; /* NULL: a size */
  size_t least, most;
  size_t offset;
  const char *initial;
} table[] = {
#define WORD(name, initial, words, help)                                                           \
  { #name, "|" words "|", 0, 0, offsetof (struct ma_options, name), initial },
#define SIZE(name, initial, least, most, help)                                                     \
  { #name, NULL, least, most, offsetof (struct ma_options, name), NULL },
#include "options.def"
#undef WORD
#undef SIZE
};

static int
read_size (const char *text, size_t *value)
{
  unsigned __int128 sum = 0;
  const char *at = text;
  for (; isdigit ((unsigned char)*at); at++)
    {
      sum = sum * 10 + (unsigned)(*at - '0');
      if (sum > SIZE_MAX)
        return 0;
    }
  if (at == text)
    return 0;
  if (*at != '\0')
    {
      int shift = strchr ("kK", *at)   ? 10
                  : strchr ("mM", *at) ? 20
                  : strchr ("gG", *at) ? 30
                  : strchr ("tT", *at) ? 40
                                       : 0;
      if (shift == 0 || at[1] != '\0')
        return 0;
      sum <<= shift;
    }
  *value = (size_t)sum;
  return sum <= SIZE_MAX;
}

static int
read_word (const struct option *option, const char *value, unsigned *number)
{
  char wanted[300];
  if (*value == '\0' || strchr (value, '|') != NULL || strlen (value) > 200)
    return 0;
  snprintf (wanted, sizeof wanted, "|%s|", value);
  const char *at = strstr (option->words, wanted);
  *number = 0;
  for (const char *c = option->words; at != NULL && c <= at; c++)
    *number += *c == '|';
  return at != NULL;
}

/* 0 where the text is to be refused. */
static int
model (char *text, struct ma_options *out)
{
  for (char *next = text; next != NULL;)
    {
      char *item = strsep (&next, ",");
      if (*item == '\0')
        continue;
      char *value = strchr (item, '=');
      if (value != NULL)
        *value++ = '\0';
      const struct option *option = NULL;
      for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp (table[i].key, item) == 0)
          option = &table[i];
      if (option == NULL)
        return 0;
      char *field = (char *)out + option->offset;
      size_t size = 0;
      unsigned number = 0;
      if (option->words != NULL)
        {
          if (!read_word (option, value ? value : "", &number))
            return 0;
          memcpy (field, &number, sizeof number);
        }
      else
        {
          if (!read_size (value ? value : "", &size) || size < option->least || size > option->most)
            return 0;
          memcpy (field, &size, sizeof size);
        }
    }
  return 1;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  static char text[5000], copy[5000];
  static struct ma_options initial;
  static int is_known;
  if (size >= sizeof text)
    return 0;
  if (!is_known)
    {
      unsetenv ("MALLOC_ARENA_OPTIONS");
      parse ();
      initial = options;
      is_known = 1;
    }
  memcpy (text, data, size);
  text[size] = '\0';
  strcpy (copy, text);
  struct ma_options expected = initial;
  int is_good = model (copy, &expected);
  options = initial;
  CHECK (setenv ("MALLOC_ARENA_OPTIONS", text, 1) == 0);
  if (setjmp (refused) == 0)
    {
      parse ();
      CHECK (is_good);
      CHECK (memcmp (&options, &expected, sizeof options) == 0);
    }
  else
    CHECK (!is_good);
  return 0;
}
