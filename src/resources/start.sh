#!/bin/sh
exec postgres -D /var/lib/dialog/pgdata
