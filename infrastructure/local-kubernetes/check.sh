#!/usr/bin/env bash
# check.sh: proves on the running cluster what the stories rely on, in a namespace of its own.
set -euo pipefail
source "$(dirname "$0")/lib/settings.sh"

PATH=$STATE/bin:$PATH
image=$("$HERE/images.sh" postgres)
uid=${DIALOG_IMAGE_UID:-999} gid=${DIALOG_IMAGE_GID:-999}
namespace=check-$$
trap 'kubectl delete namespace "$namespace" --wait=false >/dev/null' EXIT
in_namespace() { kubectl --namespace "$namespace" "$@"; }
ok() { say "ok: $*"; }

kubectl create namespace "$namespace" >/dev/null
kubectl label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
# The service account is made a moment after the namespace, and a pod needs it.
wait_for 20 "the service account" in_namespace get serviceaccount default
in_namespace apply --filename - >/dev/null <<EOF
apiVersion: v1
kind: Service
metadata: { name: nodes }
spec: { clusterIP: None, publishNotReadyAddresses: true, selector: { app: check }, ports: [{ port: 5432 }] }
---
apiVersion: v1
kind: Service
metadata: { name: one }
spec: { selector: { app: check }, ports: [{ port: 5432 }] }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: full }
spec: { accessModes: [ReadWriteOnce], storageClassName: small, resources: { requests: { storage: 8Mi } } }
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: check }
spec:
  serviceName: nodes
  selector: { matchLabels: { app: check } }
  template:
    metadata: { labels: { app: check } }
    spec:
      terminationGracePeriodSeconds: 5
      securityContext: { runAsNonRoot: true, runAsUser: $uid, runAsGroup: $gid, fsGroup: $gid, seccompProfile: { type: RuntimeDefault } }
      containers:
        - name: postgres
          image: $image
          command:
            - sh
            - -ec
            - |
              [ -s /data/pg/PG_VERSION ] || initdb --pgdata=/data/pg --auth=trust --no-sync >/dev/null
              exec postgres -D /data/pg -k /socket -c listen_addresses='*' -c shared_preload_libraries=citus
          securityContext: { readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: { drop: [ALL] } }
          readinessProbe: { exec: { command: [pg_isready, -h, /socket] }, periodSeconds: 1 }
          volumeMounts:
            - { name: data, mountPath: /data }
            - { name: full, mountPath: /full }
            - { name: socket, mountPath: /socket }
            - { name: tmp, mountPath: /tmp }
      volumes:
        - { name: full, persistentVolumeClaim: { claimName: full } }
        - { name: socket, emptyDir: {} }
        - { name: tmp, emptyDir: {} }
  volumeClaimTemplates:
    - metadata: { name: data }
      spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 1Gi } } }
EOF
started=$SECONDS
wait_for 90 "PostgreSQL to be ready" in_namespace wait --for=condition=Ready pod/check-0 --timeout=0
ok "PostgreSQL with Citus runs under the restricted standard on a local volume with fsGroup ($((SECONDS - started)) s)"

inside() { in_namespace exec check-0 -- "$@"; }
[[ $(inside psql -h /socket -d postgres -Atc "CREATE EXTENSION citus; SELECT 'made'") == *made ]] || die "CREATE EXTENSION citus failed"
ok "exec, and CREATE EXTENSION citus"
in_namespace logs check-0 | grep -q "database system is ready" || die "no logs"
ok "logs"
# Not the pod's own name: that one is in its /etc/hosts.
wait_for 40 "DNS of a headless Service" inside pg_isready -h "nodes.$namespace.svc.$DOMAIN"
ok "DNS of a headless Service inside a pod"
pod_ip=$(in_namespace get pod check-0 -o 'jsonpath={.status.podIP}')
service_ip=$(in_namespace get service one -o 'jsonpath={.spec.clusterIP}')
for address in "$pod_ip" "$service_ip"; do
  wait_for 20 "the host to reach $address" timeout 2 bash -c "exec 3<>/dev/tcp/$address/5432"
done
ok "this machine reaches the pod and the Service"
wait_for 20 "a pod to reach itself through the Service" inside pg_isready -h one
ok "a pod reaches itself through a Service"
if inside dd if=/dev/zero of=/full/file bs=1M count=9 2>/dev/null; then die "9 MiB fit on a volume of 8 MiB"; fi
in_namespace patch pvc full --patch '{"spec":{"resources":{"requests":{"storage":"16Mi"}}}}' >/dev/null
wait_for 20 "the volume to grow" in_namespace wait --for=jsonpath='{.status.capacity.storage}'=16Mi pvc/full --timeout=0
inside dd if=/dev/zero of=/full/file bs=1M count=9 2>/dev/null || die "the grown volume is still full"
ok "a small volume is full at its size, and grows"
