// local-volumes provisions PersistentVolumes of type "local": a directory for each claim or, with the
// StorageClass parameter medium=tmpfs, a tmpfs of exactly the claimed size, so that a disk can be full.
// Unlike hostPath, the kubelet gives a local volume its fsGroup, so that pods need no root.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisionerName = "dialogcluster.dev/local-volumes"

type localVolumes struct {
	root   string
	client kubernetes.Interface
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "path to a kubeconfig")
	root := flag.String("root", "", "directory the volumes live in")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	config.QPS, config.Burst = 50, 100
	client := kubernetes.NewForConfigOrDie(config)
	volumes := &localVolumes{root: *root, client: client}

	go volumes.expandClaims(ctx)
	controller.NewProvisionController(ctx, client, provisionerName, volumes,
		controller.LeaderElection(false)).Run(ctx)
}

func (v *localVolumes) Provision(_ context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if mode := o.PVC.Spec.VolumeMode; mode != nil && *mode != corev1.PersistentVolumeFilesystem {
		return nil, controller.ProvisioningFinished, fmt.Errorf("volume mode %s is not supported", *mode)
	}
	size := o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	path := filepath.Join(v.root, o.PVName)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	// A second try after a lost answer finds the tmpfs in place.
	if o.StorageClass.Parameters["medium"] == "tmpfs" && !isMount(path) {
		if err := syscall.Mount("tmpfs", path, "tmpfs", 0, tmpfsOptions(size)); err != nil {
			return nil, controller.ProvisioningFinished, fmt.Errorf("mount tmpfs: %w", err)
		}
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes,
			MountOptions:                  o.StorageClass.MountOptions,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: size},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{o.SelectedNodeName},
				}},
			}}}},
		},
	}, controller.ProvisioningFinished, nil
}

func (v *localVolumes) Delete(_ context.Context, pv *corev1.PersistentVolume) error {
	path := pv.Spec.Local.Path
	if filepath.Dir(path) != filepath.Clean(v.root) {
		return fmt.Errorf("%s is not a volume of %s", path, v.root)
	}
	if isMount(path) {
		if err := syscall.Unmount(path, 0); err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
	}
	return os.RemoveAll(path)
}

// expandClaims grows volumes whose claim asks for more: what an external resizer does for a CSI driver.
func (v *localVolumes) expandClaims(ctx context.Context) {
	factory := informers.NewSharedInformerFactory(v.client, 30*time.Second)
	_, err := factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, object any) {
			claim := object.(*corev1.PersistentVolumeClaim)
			if err := v.expand(ctx, claim); err != nil && !errors.IsConflict(err) {
				klog.ErrorS(err, "expand", "claim", klog.KObj(claim)) // the resync tries again
			}
		},
	})
	if err != nil {
		klog.Fatal(err)
	}
	factory.Start(ctx.Done())
}

func (v *localVolumes) expand(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	asked, has := claim.Spec.Resources.Requests[corev1.ResourceStorage], claim.Status.Capacity[corev1.ResourceStorage]
	if claim.Status.Phase != corev1.ClaimBound || asked.Cmp(has) <= 0 {
		return nil
	}
	pv, err := v.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || pv.Annotations["pv.kubernetes.io/provisioned-by"] != provisionerName {
		return err
	}
	if path := pv.Spec.Local.Path; isMount(path) {
		if err := syscall.Mount("tmpfs", path, "tmpfs", syscall.MS_REMOUNT, tmpfsOptions(asked)); err != nil {
			return fmt.Errorf("remount tmpfs: %w", err)
		}
	}
	pv.Spec.Capacity[corev1.ResourceStorage] = asked
	if _, err := v.client.CoreV1().PersistentVolumes().Update(ctx, pv, metav1.UpdateOptions{}); err != nil {
		return err
	}
	claim = claim.DeepCopy()
	claim.Status.Capacity[corev1.ResourceStorage] = asked
	_, err = v.client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, claim, metav1.UpdateOptions{})
	return err
}

func tmpfsOptions(size resource.Quantity) string {
	return fmt.Sprintf("size=%d,mode=0755", size.Value())
}

// isMount tells whether path is on another file system than its parent.
func isMount(path string) bool {
	var here, parent syscall.Stat_t
	return syscall.Stat(path, &here) == nil && syscall.Stat(filepath.Dir(path), &parent) == nil && here.Dev != parent.Dev
}
