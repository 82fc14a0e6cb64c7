#include "bind.h"

#include <dlfcn.h>
#include <elf.h>
#include <gnu/libc-version.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "fatal.h"

/* ---- which object defines a name ---- */

struct search
{
  const char *name;
  uint32_t hash;
  void *found;
};

static uint32_t
gnu_hash (const char *name)
{
  uint32_t h = 5381;
  for (; *name; name++)
    h = h * 33 + (unsigned char)*name;
  return h;
}

/* The loader relocates these in place on most systems, and leaves them in the vDSO. */
static const void *
dynamic_pointer (const struct dl_phdr_info *object, ElfW (Addr) value)
{
  return (const void *)(value < object->dlpi_addr ? value + object->dlpi_addr : value);
}

static int
is_definition (const struct search *search, const ElfW (Sym) *symbol, const char *strings)
{
  return symbol->st_shndx != SHN_UNDEF && strcmp (strings + symbol->st_name, search->name) == 0;
}

static const ElfW (Sym) *
lookup (const struct search *search, const uint32_t *table, const ElfW (Sym) *symbols,
        const char *strings)
{
  uint32_t buckets = table[0];
  uint32_t first = table[1];
  uint32_t bloom = table[2];
  const uint32_t *bucket = table + 4 + bloom * (sizeof (ElfW (Addr)) / sizeof (uint32_t));
  const uint32_t *chain = bucket + buckets;
  if (buckets == 0)
    return NULL;
  uint32_t i = bucket[search->hash % buckets];
  if (i < first)
    return NULL;
  for (;; i++)
    {
      uint32_t hash = chain[i - first];
      if ((hash | 1) == (search->hash | 1) && is_definition (search, &symbols[i], strings))
        return &symbols[i];
      if (hash & 1)
        return NULL;
    }
}

/* In the older table (--hash-style=sysv), of which only the number of symbols is needed: they are compared one by
 * one. */
static const ElfW (Sym) *
lookup_each (const struct search *search, const uint32_t *table, const ElfW (Sym) *symbols,
             const char *strings)
{
  uint32_t count = table[1];
  for (uint32_t i = 1; i < count; i++)
    if (is_definition (search, &symbols[i], strings))
      return &symbols[i];
  return NULL;
}

static int
search_object (struct dl_phdr_info *object, size_t size, void *data)
{
  (void)size;
  struct search *search = data;
  const ElfW (Dyn) *entry = NULL;
  for (unsigned i = 0; i < object->dlpi_phnum; i++)
    if (object->dlpi_phdr[i].p_type == PT_DYNAMIC)
      entry = (const void *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
  const uint32_t *table = NULL, *older = NULL;
  const ElfW (Sym) *symbols = NULL;
  const char *strings = NULL;
  for (; entry && entry->d_tag != DT_NULL; entry++)
    if (entry->d_tag == DT_GNU_HASH)
      table = dynamic_pointer (object, entry->d_un.d_ptr);
    else if (entry->d_tag == DT_HASH)
      older = dynamic_pointer (object, entry->d_un.d_ptr);
    else if (entry->d_tag == DT_SYMTAB)
      symbols = dynamic_pointer (object, entry->d_un.d_ptr);
    else if (entry->d_tag == DT_STRTAB)
      strings = dynamic_pointer (object, entry->d_un.d_ptr);
  if (!(table || older) || !symbols || !strings)
    return 0;
  const ElfW (Sym) *symbol = table ? lookup (search, table, symbols, strings)
                                   : lookup_each (search, older, symbols, strings);
  if (symbol)
    search->found = (void *)(object->dlpi_addr + symbol->st_value);
  return symbol != NULL;
}

/* Where a call of NAME by the program goes. Objects are visited in the order of the link map, which
 * for those loaded at the start is the order of symbol search. */
static void *
definition (const char *name)
{
  struct search search = { name, gnu_hash (name), NULL };
  dl_iterate_phdr (search_object, &search);
  return search.found;
}

/* ---- the check ---- */

/* The name as the linker has it: "free", but in a build with a sanitizer (see meson.build). */
#define LINKED(name) LINKED_AS (name)
#define LINKED_AS(name) #name

static const void *
object_of (const void *p)
{
  Dl_info info;
  return p && dladdr (p, &info) ? info.dli_fbase : NULL;
}

static const char *
path_of (const void *p)
{
  Dl_info info;
  return p && dladdr (p, &info) && info.dli_fname ? info.dli_fname : "an unknown object";
}

/* Of the C library: they get their memory from the process's malloc. */
static int
is_allocating (const char *name)
{
  static const char names[] = "strdup\0strndup\0__strdup\0__strndup\0asprintf\0__asprintf\0"
                              "vasprintf\0getline\0getdelim\0__getdelim\0wcsdup\0realpath\0"
                              "open_memstream\0";
  for (const char *at = names; *at; at += strlen (at) + 1)
    if (strcmp (at, name) == 0)
      return 1;
  return 0;
}

/* Aborts unless the program's calls of NAME, which go to ROUTINE, end in our object. */
static void
check_first (const char *name, const void *routine, const void *ours)
{
  if (object_of (routine) != ours)
    ma_fatal ("foreign ", name, ": ", name, " is ", path_of (routine), "'s, the arena is ",
              path_of ((const void *)ma_bind_check),
              "'s: link the program itself with that, or put it first in LD_PRELOAD", NULL);
}

static __attribute__ ((noinline, cold)) void
check_slow (const void *routine)
{
  const void *ours = object_of ((const void *)ma_bind_check);
  /* A whole other implementation in front is called by the name of its malloc. */
  check_first ("malloc", definition (LINKED (malloc)), ours);
  check_first ("free", definition (LINKED (free)), ours);
  Dl_info info = { 0 };
  const ElfW (Sym) *symbol = NULL;
  const void *target = routine;
  const char *name = NULL;
  if (dladdr1 (routine, &info, (void **)&symbol, RTLD_DL_SYMENT) && info.dli_saddr == routine)
    {
      name = info.dli_sname;
      /* Not defined there and yet with an address: the PLT entry that stands for the routine in a
       * program that is not position-independent. */
      if (symbol && symbol->st_shndx == SHN_UNDEF && name)
        target = definition (name);
    }
  const void *owner = object_of (target);
  if (owner == ours)
    return;
  if (name && is_allocating (name) && owner == object_of ((const void *)gnu_get_libc_version))
    {
      const void *malloc_routine = definition ("malloc");
      if (object_of (malloc_routine) == ours)
        return;
      target = malloc_routine;
      name = "malloc";
    }
  ma_fatal ("foreign routine: ", name ? name : "the routine", " is ", path_of (target),
            "'s, the arena is ", path_of ((const void *)ma_bind_check), "'s", NULL);
}

int
ma_bind_together (const void *a, const void *b)
{
  return object_of (a) == object_of (b);
}

void
ma_bind_check (void (*routine) (void))
{
  /* Checked routines, by address. A lost race is checked again. */
  enum
  {
    SEEN = 64
  };
  static _Atomic uintptr_t seen[SEEN];
  uintptr_t address = (uintptr_t)routine;
  _Atomic uintptr_t *place = &seen[(address >> 4 ^ address >> 10) % SEEN];
  if (__builtin_expect (atomic_load_explicit (place, memory_order_relaxed) == address, 1))
    return;
  check_slow ((const void *)address);
  atomic_store_explicit (place, address, memory_order_relaxed);
}
