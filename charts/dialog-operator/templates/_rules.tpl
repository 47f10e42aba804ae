{{/*
What the operator may do where its DialogClusters are, and nothing more. tests/chart.rs has the same list as a table.
Absent on purpose: it deletes no Secret, executes nothing in a pod, and writes no spec of a DialogCluster.
*/}}
{{- define "dialog-operator.rules" -}}
- apiGroups: [dialogcluster.dev]
  resources: [dialogclusters]
  verbs: [get, list, watch]
- apiGroups: [dialogcluster.dev]
  resources: [dialogclusters/status]
  verbs: [patch]
# An owner reference that blocks the owner's deletion needs this where the admission plugin asks for it.
- apiGroups: [dialogcluster.dev]
  resources: [dialogclusters/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [secrets, serviceaccounts]
  verbs: [get, list, watch, create, patch]
# delete: the volume of a worker that was drained and removed, where spec.volumes.whenScaled is Delete.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
# delete: what was made for a worker that is no longer asked for.
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
# create: the pod that is asked what is in an image. patch: the annotation that brings a changed ConfigMap at once.
# delete: a restart.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# Why no pod can be made stands in an event of the StatefulSet and nowhere else.
- apiGroups: [""]
  resources: [events]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
