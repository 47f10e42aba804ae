/* What the files of the library share. */
#ifndef STANDIN_H
#define STANDIN_H

extern void register_launcher(void);
extern void set_hooks(void);

#endif
